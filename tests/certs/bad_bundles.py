"""Bundles, and states of the coordinator's records, that are refused."""

import datetime as dt
import json
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric import ec

from certs import CA, audit, enrolment, keys, rotation
from certs.enrolment import approve, install, make_request
from certs.registry import Registry
from tests.certs.judges import DAY, NOW
from tests.certs.workbench import Act, Bench, bad, installing, json_edit, resigned, rogue_bundle


@bad("bundle-garbage")
def garbage_bundle(b: Bench) -> Act:
    return installing(b, lambda text: text[:-30])


@bad("bundle-garbage")
def request_for_bundle(b: Bench) -> Act:
    folder = b.site()
    return lambda: install(folder / "request.json", folder, now=NOW)


@bad("bundle-version")
def bundle_of_tomorrow(b: Bench) -> Act:
    return installing(b, lambda text: text.replace(b'"version": 1', b'"version": 9'))


@bad("bundle-fields")
def bundle_with_extra_field(b: Bench) -> Act:
    return installing(b, lambda text: text.replace(b'"site"', b'"command": "rm",\n "site"', 1))


@bad("bundle-fields")
def bundle_without_time(b: Bench) -> Act:
    return installing(b, lambda text: text.replace(b'"made": "2', b'"made": "x'))


@bad("bundle-fields")
def bundle_that_paints_a_fingerprint(b: Bench) -> Act:
    return installing(b, lambda text: json_edit(text, aggregator="a\r\x1b[1ACA: 1234-5678"))


@bad("bundle-fields")
def bundle_without_address(b: Bench) -> Act:
    study = replace(b.study, aggregator="")
    ca, path = b.ca(), b.site() / "request.json"
    digits = enrolment.read_request(path, now=NOW).fingerprint
    return lambda: approve(ca, path, Registry(b.folder / "none"), study, fingerprint=digits)


@bad("bundle-proof")
def bundle_with_another_address(b: Bench) -> Act:
    return installing(b, lambda text: text.replace(b"fl.example.org", b"fl.evil.example"))


@bad("bundle-proof")
def bundle_with_another_study_key(b: Bench) -> Act:
    rogue = keys.public_pem(keys.new_signing_key().public_key()).decode()
    return installing(b, lambda text: json_edit(text, study_key=rogue))


@bad("bundle-proof")
def bundle_with_another_root(b: Bench) -> Act:
    rogue = CA.create().trust_pem.decode()
    return installing(b, lambda text: json_edit(text, trust=rogue))


@bad("bundle-secret")
def bundle_with_a_private_key(b: Bench) -> Act:
    secret = keys.private_pem(keys.new_certificate_key()).decode()
    return installing(b, lambda text: json_edit(text, links=secret))


@bad("bundle-site")
def another_sites_bundle(b: Bench) -> Act:
    folder, _ = b.enrolled()
    _, other = b.enrolled("hospital-b")
    return lambda: install(other, folder, now=NOW)


@bad("bundle-key")
def bundle_for_older_keys(b: Bench) -> Act:
    folder, bundle = b.enrolled()
    make_request(folder, "hospital-a", new_keys=True, now=NOW)
    return lambda: install(bundle, folder, now=NOW)


@bad("bundle-other-ca")
def renewal_by_another_ca(b: Bench) -> Act:
    folder, bundle = b.enrolled()
    install(bundle, folder, now=NOW)
    rogue = rogue_bundle(b, folder)
    return lambda: install(rogue, folder, now=NOW)


@bad("bundle-study-key")
def renewal_with_another_study_key(b: Bench) -> Act:
    folder, bundle = b.enrolled()
    install(bundle, folder, now=NOW)
    other = replace(b.study, study_key=keys.new_signing_key().public_key())
    approval = approve(
        b.ca(), folder / "request.json", b.registry, other, renew=True, now=NOW
    )  # fmt: skip
    path = b.write(approval.bundle)
    return lambda: install(path, folder, now=NOW)


@bad("bundle-ca-fingerprint")
def bundle_of_a_rogue_ca(b: Bench) -> Act:
    folder, bundle = b.enrolled()
    return lambda: install(bundle, folder, ca_fingerprint=CA.create().fingerprint, now=NOW)


@bad("bundle-older")
def older_bundle(b: Bench) -> Act:
    folder, bundle = b.enrolled()
    later = approve(
        b.ca(), folder / "request.json", b.registry, b.study, renew=True, now=NOW + DAY
    )  # fmt: skip
    install(b.write(later.bundle), folder, now=NOW + DAY)
    return lambda: install(bundle, folder, now=NOW + DAY)


@bad("cert-not-yet")
def installed_with_a_slow_clock(b: Bench) -> Act:
    folder, bundle = b.enrolled()
    return lambda: install(bundle, folder, now=NOW - dt.timedelta(hours=2))


@bad("cert-expired")
def installed_too_late(b: Bench) -> Act:
    folder, bundle = b.enrolled()
    return lambda: install(bundle, folder, now=NOW + 31 * DAY)


@bad("cert-identity")
def bundle_with_an_operators_leaf(b: Bench) -> Act:
    folder, bundle = b.enrolled()
    ca, text = b.ca(), json.loads(bundle.read_bytes())
    key = keys.load_certificate_key(folder / "client.key")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    text["certificate"] = ca.issue_client(
        "hospital-a", "operator", key=key, now=NOW
    ).certificate_pem.decode()  # fmt: skip
    path = b.write(resigned(ca, text))
    return lambda: install(path, folder, now=NOW)


@bad("enrol-none")
def bundle_without_request(b: Bench) -> Act:
    _, bundle = b.enrolled()
    return lambda: install(bundle, b.folder / "elsewhere", now=NOW)


@bad("ca-exists")
def second_ca_in_a_folder(b: Bench) -> Act:
    b.ca()
    return lambda: CA.create().save(b.folder / "ca")


@bad("ca-offline")
def ca_without_key(b: Bench) -> Act:
    b.ca()
    next((b.folder / "ca").glob("ca-*.key")).unlink()
    return lambda: b.ca().issue_client("hospital-a", now=NOW)


@bad("key-swapped")
def ca_with_another_key(b: Bench) -> Act:
    b.ca()
    key = next((b.folder / "ca").glob("ca-*.key"))
    key.write_bytes(keys.private_pem(keys.new_certificate_key()))
    return lambda: b.ca().issue_client("hospital-a", now=NOW)


@bad("ca-expired")
def ended_ca(b: Bench) -> Act:
    return lambda: CA.create(lifetime=DAY, now=NOW - 9 * DAY).issue_client("hospital-a", now=NOW)


@bad("state-garbage")
def garbage_ca_record(b: Bench) -> Act:
    b.ca()
    (b.folder / "ca" / "state.json").write_text("{}")
    return lambda: b.ca()


@bad("state-garbage")
def garbage_registry(b: Bench) -> Act:
    b.enrolled()
    b.registry.path.write_text('{"format": "fedward-site-registry", "version": 1, "sites": [{}]}')
    return lambda: b.registry.sites()


@bad("serial-unknown")
def unknown_serial(b: Bench) -> Act:
    ca = CA.create()
    return lambda: ca.revoke(12345)


@bad("rollover-running")
def two_changes_of_ca(b: Bench) -> Act:
    ca = CA.create()
    ca.begin_rollover()
    return lambda: ca.begin_rollover()


@bad("rollover-none")
def finish_without_begin(b: Bench) -> Act:
    return lambda: CA.create().finish_rollover()


@bad("rollover-needed")
def finish_too_early(b: Bench) -> Act:
    ca = CA.create()
    ca.issue_client("hospital-a")
    ca.begin_rollover()
    return lambda: ca.finish_rollover()


@bad("cert-identity")
def hospitals_leaf_rotated_by_the_coordinator(b: Bench) -> Act:
    folder, bundle = b.enrolled()
    install(bundle, folder, now=NOW)
    ca = b.ca()
    return lambda: rotation.rotate_client(ca, folder, b.registry.folder, now=NOW)


@bad("audit-broken")
def edited_audit_log(b: Bench) -> Act:
    b.enrolled()
    b.enrolled("hospital-b")
    log = b.registry.folder / audit.FILE
    log.write_text(log.read_text().replace("approve", "renew", 1))
    return lambda: audit.read(b.registry.folder)
