"""A hospital enrols, renews, is revoked and comes back; its keys never leave its folder."""

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path

import pytest

from certs import CA, CertError, audit, enrolment, keys
from certs._pem import read_certificates
from certs.enrolment import approve, install, make_request, read_request, revoke
from certs.inspection import check_client_files, check_node_key, check_signing_key
from tests.certs.judges import CLIENT, DAY, NOW, assert_is_leaf, openssl_verifies
from tests.certs.workbench import Bench, new_bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return new_bench(tmp_path)


def renew(bench: Bench, folder: Path, now: dt.datetime, ca: CA | None = None) -> Path:
    """The bundle of a renewal: the same keys, no telephone."""
    make_request(folder, folder.name, now=now)
    approval = approve(
        ca or bench.ca(), folder / "request.json", bench.registry, bench.study, renew=True, now=now
    )
    return bench.write(approval.bundle, "renewal.bundle")


def test_a_hospital_enrols(bench: Bench) -> None:
    """After three steps the site's files pass every check, and OpenSSL's."""
    folder, bundle = bench.enrolled()
    installed = install(bundle, folder, now=NOW)
    assert installed.site == "hospital-a"
    assert installed.ca_fingerprint == bench.ca().fingerprint
    assert installed.aggregator == "fl.example.org:443"
    assert not installed.renewed
    paths = installed.paths
    report = check_client_files(
        paths.client.cert, paths.client.key, paths.ca, site="hospital-a", now=NOW,
        crl=bench.folder / "ca" / "crl.pem",
    )  # fmt: skip
    assert report.not_after == installed.not_after
    check_node_key(paths.node_key, paths.node_public)
    check_signing_key(paths.signing_key, paths.signing_public)
    assert openssl_verifies(paths.client.cert, paths.ca, "sslclient")
    assert not openssl_verifies(paths.client.cert, paths.ca, "sslserver")


def test_no_private_key_leaves_the_hospital(bench: Bench) -> None:
    """Request, bundle, registry and audit log hold no secret; every key in the folder is 0600."""
    folder, bundle = bench.enrolled()
    install(bundle, folder, now=NOW)
    travelling = [folder / "request.json", bundle, *bench.registry.folder.iterdir()]
    secrets = [path for path in folder.iterdir() if b"PRIVATE KEY" in path.read_bytes()]
    assert {path.name for path in secrets} == {
        "client.key", "client.pem", "node.key", "signing.key"
    }  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    for path in travelling:
        text = path.read_bytes()
        assert b"PRIVATE" not in text
        for secret in secrets:
            assert not any(line in text for line in secret.read_bytes().splitlines()[1:3])


def test_the_registry_knows_the_sites_keys(bench: Bench) -> None:
    """The server finds each enrolled site's signing key and node key, as they lie at the site."""
    folder, _ = bench.enrolled()
    public = keys.load_signing_public(folder / "signing.pub")
    assert keys.spki(bench.registry.signing_keys()["hospital-a"]) == keys.spki(public)
    node = (folder / "node.pub").read_text().strip()
    assert bench.registry.node_keys() == {"hospital-a": node}


def test_the_fingerprint_is_the_identity(bench: Bench) -> None:
    """Asking again, on any day, shows the same digits; another site or key shows others."""
    folder = bench.site()
    first = read_request(folder / "request.json", now=NOW)
    again = make_request(folder, "hospital-a", now=NOW + DAY)
    assert again.fingerprint == first.fingerprint
    assert len(first.fingerprint.split("-")) == 8
    assert bench.site("hospital-b") != folder
    other = make_request(folder, "hospital-a", new_keys=True, now=NOW)
    assert other.fingerprint != first.fingerprint


@pytest.mark.parametrize("spelling", [str.upper, lambda t: t.replace("-", " "), str.strip])
def test_the_fingerprint_may_be_typed_as_people_do(bench: Bench, spelling: object) -> None:
    """Capitals, spaces and dashes are all the same."""
    path = bench.site() / "request.json"
    typed = spelling(read_request(path, now=NOW).fingerprint)  # type: ignore[operator]
    assert bench.approving(path, fingerprint=typed)()


def test_a_renewal_needs_no_telephone_and_keeps_the_keys(bench: Bench) -> None:
    """The same keys give a new serial; node key and signing key stay what they were."""
    folder, bundle = bench.enrolled()
    first = install(bundle, folder, now=NOW)
    before = bench.registry.site("hospital-a")
    later = install(renew(bench, folder, NOW + 20 * DAY), folder, now=NOW + 20 * DAY)
    after = bench.registry.site("hospital-a")
    assert later.renewed
    assert later.not_after - first.not_after == 20 * DAY
    assert len(after.serials) == 2
    assert after.digests() == before.digests()
    assert after.enrolled_at == before.enrolled_at


def test_a_revoked_site_is_out_everywhere_and_stays_out(bench: Bench) -> None:
    """All its serials are on the list, its keys are no longer served, and the moment is kept."""
    folder, bundle = bench.enrolled()
    install(bundle, folder, now=NOW)
    install(renew(bench, folder, NOW + DAY), folder, now=NOW + DAY)
    bench.enrolled("hospital-b")
    done = revoke(bench.ca(), "hospital-a", bench.registry, reason="lost laptop", now=NOW + DAY)
    assert len(done.serials) == 2
    again = revoke(bench.ca(), "hospital-a", bench.registry, now=NOW + 2 * DAY)
    assert again.when == done.when
    assert set(again.serials) == set(done.serials)
    assert bench.registry.signing_keys().keys() == {"hospital-b"}
    assert bench.registry.node_keys().keys() == {"hospital-b"}
    crl = bench.folder / "ca" / "crl.pem"
    assert "lost laptop" not in crl.read_text()
    with pytest.raises(CertError, match="was revoked at"):
        check_client_files(
            folder / "client.crt", folder / "client.key", folder / "ca.crt", crl=crl,
            now=NOW + 2 * DAY,
        )  # fmt: skip


def test_a_revoked_site_comes_back_with_new_keys_only(bench: Bench) -> None:
    """After revocation: three new keys and a new comparison; the old keys are burnt for ever."""
    folder, bundle = bench.enrolled()
    install(bundle, folder, now=NOW)
    revoke(bench.ca(), "hospital-a", bench.registry, now=NOW)
    request = make_request(folder, "hospital-a", new_keys=True, now=NOW + DAY)
    assert list(folder.glob("retired-*/node.key"))
    approval = approve(
        bench.ca(), request.path, bench.registry, bench.study, readmit=True,
        fingerprint=request.fingerprint, now=NOW + DAY,
    )  # fmt: skip
    installed = install(bench.write(approval.bundle), folder, now=NOW + DAY)
    assert bench.registry.node_keys()["hospital-a"] == approval.node_key
    paths = installed.paths.client
    crl = bench.folder / "ca" / "crl.pem"
    check_client_files(paths.cert, paths.key, paths.ca, site="hospital-a", crl=crl, now=NOW + DAY)


def test_a_crash_between_registry_and_list_is_mended_by_revoking_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Revocation that dies before the list is written already bars the site, and can be redone."""
    bench.enrolled()
    ca = bench.ca()
    monkeypatch.setattr(CA, "revoke", lambda *_, **__: (_ for _ in ()).throw(OSError("power")))
    with pytest.raises(OSError, match="power"):
        revoke(ca, "hospital-a", bench.registry, now=NOW)
    assert not bench.registry.signing_keys()
    monkeypatch.undo()
    assert revoke(bench.ca(), "hospital-a", bench.registry, now=NOW + DAY).serials
    assert [act["act"] for act in audit.read(bench.registry.folder)] == ["approve", "revoke"]


def test_a_change_of_ca_reaches_the_hospital_by_renewal(bench: Bench) -> None:
    """While both roots are trusted, a renewal brings the new one, vouched for by the old."""
    folder, bundle = bench.enrolled()
    install(bundle, folder, now=NOW)
    ca = bench.ca()
    old = ca.fingerprint
    ca.begin_rollover(now=NOW + DAY)
    with pytest.raises(CertError, match="certificates of the old CA still run"):
        ca.finish_rollover(now=NOW + DAY)
    installed = install(renew(bench, folder, NOW + DAY, ca), folder, now=NOW + DAY)
    assert installed.ca_fingerprint == ca.fingerprint != old
    assert (folder / "ca.crt").read_bytes().count(b"BEGIN CERTIFICATE") == 2
    ca.finish_rollover(now=NOW + 2 * DAY)
    install(renew(bench, folder, NOW + 3 * DAY, ca), folder, now=NOW + 3 * DAY)
    assert (folder / "ca.crt").read_bytes().count(b"BEGIN CERTIFICATE") == 1


def test_a_hospital_that_slept_through_the_change_compares_again(bench: Bench) -> None:
    """After the change is finished, an old site needs the new CA's fingerprint by telephone."""
    folder, bundle = bench.enrolled()
    install(bundle, folder, now=NOW)
    ca = bench.ca()
    ca.begin_rollover(now=NOW)
    ca.finish_rollover(force=True, now=NOW)
    path = renew(bench, folder, NOW + DAY, ca)
    with pytest.raises(CertError) as caught:
        install(path, folder, now=NOW + DAY)
    assert caught.value.code == "bundle-other-ca"
    install(path, folder, ca_fingerprint=ca.fingerprint, now=NOW + DAY)


def test_a_new_study_key_is_accepted_on_purpose_only(bench: Bench) -> None:
    """`new_study_key` lets a compared key in; without it the installation is refused (table)."""
    folder, bundle = bench.enrolled()
    install(bundle, folder, now=NOW)
    study = replace(bench.study, study_key=keys.new_signing_key().public_key())
    path = renew(replace(bench, study=study), folder, NOW + DAY)
    install(path, folder, new_study_key=True, now=NOW + DAY)
    new = keys.load_signing_public(folder / "study-signing.pub")
    assert keys.spki(new) == keys.spki(study.study_key)


def test_the_same_bundle_installs_twice(bench: Bench) -> None:
    """Installing again, after a crash or by mistake, changes nothing."""
    folder, bundle = bench.enrolled()
    install(bundle, folder, now=NOW)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    install(bundle, folder, now=NOW)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_an_interrupted_first_request_is_completed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash after the first key leaves a folder in which asking again works."""
    monkeypatch.setattr(
        keys, "write_signing_key", lambda *_: (_ for _ in ()).throw(OSError("power"))
    )
    with pytest.raises(OSError, match="power"):
        bench.site()
    node = (bench.folder / "hospital-a" / "node.key").read_bytes()
    monkeypatch.undo()
    assert (bench.site() / "node.key").read_bytes() == node


def test_every_act_is_in_the_audit_log(bench: Bench) -> None:
    """Who did what to whom and when, bound line to line; a torn last line is passed over."""
    bench.enrolled()
    revoke(bench.ca(), "hospital-a", bench.registry, reason="left", actor="dr-who", now=NOW)
    log = bench.registry.folder / audit.FILE
    with log.open("ab") as file:
        file.write(b'{"act": "half a li')
    audit.record(bench.registry.folder, "rotate-server", "fl.example.org", now=NOW)
    acts = audit.read(bench.registry.folder)
    assert [(act["act"], act["actor"]) for act in acts] == [
        ("approve", "coordinator"), ("revoke", "dr-who"), ("rotate-server", "coordinator")
    ]  # fmt: skip
    assert acts[1]["details"]["reason"] == "left"
    assert all(json.loads(line) for line in log.read_text().splitlines() if "half" not in line)


def test_the_certificate_holds_the_coordinators_words(bench: Bench) -> None:
    """The leaf names the site in a URI and is a client's, whatever else the CSR could say."""
    folder = bench.site()
    approval = bench.approving(folder / "request.json")()
    assert isinstance(approval, enrolment.Approval)
    installed = install(bench.write(approval.bundle), folder, now=NOW)
    leaf = read_certificates(installed.paths.client.cert)[0]
    assert_is_leaf(leaf, CLIENT, ["fedward://hospital/hospital-a"])
