"""Names and enrolment requests that are refused."""

import datetime as dt
import json
import os

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from certs import CA, _x509, enrolment, keys, request
from certs.enrolment import make_request
from certs.local import make_federation
from tests.certs.judges import NOW
from tests.certs.workbench import Act, Bench, asking, bad, edited, revoked, weak_rsa

for _name in (
    "", "A", "st mary", "hospital_a", "-a", "a-", "a" * 64, "../etc", "a/b", "a\\b", "a\n",
    "a\x00b", "hospital-\u0430", "a.b", "\u202eabc",
):  # fmt: skip

    @bad("name-site")
    def site_name(b: Bench, name: str = _name) -> Act:
        return lambda: make_request(b.folder / "x", name, now=NOW)


for _name in ("", "a b", "*.example.org", "fl.example.org:443", "10.0.0.999", "a..b", "-a.org"):

    @bad("name-server")
    def server_name(b: Bench, name: str = _name) -> Act:
        ca = CA.create()
        return lambda: ca.issue_server([name])


@bad("name-server-none")
def no_server_name(b: Bench) -> Act:
    return lambda: CA.create().issue_server([])


@bad("name-role")
def unknown_role(b: Bench) -> Act:
    return lambda: CA.create().issue_client("a", "admin")


@bad("name-sites-twice")
def site_twice(b: Bench) -> Act:
    return lambda: make_federation(b.folder / "f", ["hospital-a", "hospital-a"])


@bad("lifetime")
def no_lifetime(b: Bench) -> Act:
    return lambda: CA.create().issue_client("a", lifetime=dt.timedelta(0))


@bad("curve")
def unknown_curve(b: Bench) -> Act:
    return lambda: CA.create(curve="P-192")


@bad("request-garbage")
def garbage_request(b: Bench) -> Act:
    return b.approving(b.write(os.urandom(500)), fingerprint="0")


@bad("request-garbage")
def truncated_request(b: Bench) -> Act:
    path = b.site() / "request.json"
    path.write_bytes(path.read_bytes()[:-40])
    return b.approving(path, fingerprint="0")


@bad("request-garbage")
def deep_request(b: Bench) -> Act:
    return b.approving(b.write("[" * 30000), fingerprint="0")


@bad("request-garbage")
def bundle_for_request(b: Bench) -> Act:
    return b.approving(b.enrolled()[1], fingerprint="0")


@bad("request-garbage")
def request_with_twin_keys(b: Bench) -> Act:
    path = b.site() / "request.json"
    text = path.read_text().replace('"site":', '"site": "hospital-b",\n "site":', 1)
    return b.approving(b.write(text), fingerprint="0")


@bad("request-version")
def request_of_tomorrow(b: Bench) -> Act:
    return edited(b, version=2)


@bad("request-fields")
def request_without_field(b: Bench) -> Act:
    return edited(b, node_key=None)


@bad("request-fields")
def request_with_extra_field(b: Bench) -> Act:
    return edited(b, role="coordinator")


@bad("request-fields")
def request_with_number(b: Bench) -> Act:
    return edited(b, site=7)


@bad("request-fields")
def request_without_time(b: Bench) -> Act:
    return edited(b, made="yesterday")


@bad("request-fields")
def request_without_proof(b: Bench) -> Act:
    return edited(b, proof={"client_key": "", "node_key": ""})


@bad("request-fields")
def request_with_strange_proof(b: Bench) -> Act:
    return edited(b, proof={"client_key": "*", "node_key": "", "signing_key": ""})


@bad("request-future")
def request_from_the_future(b: Bench) -> Act:
    return edited(b, made=_x509.stamp(NOW + dt.timedelta(hours=1)))


@bad("request-csr")
def request_without_csr(b: Bench) -> Act:
    return edited(b, csr="none")


@bad("request-csr")
def csr_not_signed_by_its_key(b: Bench) -> Act:
    path = b.site() / "request.json"
    csr = x509.load_pem_x509_csr(json.loads(path.read_text())["csr"].encode())
    der = bytearray(csr.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    broken = x509.load_der_x509_csr(bytes(der))
    return edited(b, csr=_x509.pem(broken).decode())


@bad("request-subject")
def renamed_request(b: Bench) -> Act:
    return edited(b, site="hospital-b")


for _name in ("../../etc/cron.d/x", "hospital-b", "a\x1b[2J", "hospital-a\nhospital-b"):

    @bad("request-subject")
    def csr_names_another(b: Bench, name: str = _name) -> Act:
        key = keys.new_certificate_key()
        uri = x509.UniformResourceIdentifier("fedward://hospital/hospital-a")
        return edited(b, csr=_x509.pem(_x509.request(_x509.subject(name, "hospital"), key, [uri])))


@bad("request-subject")
def csr_of_a_coordinator(b: Bench) -> Act:
    csr = _x509.request(_x509.subject("hospital-a", "coordinator"), keys.new_certificate_key(), [])
    return edited(b, csr=_x509.pem(csr))


@bad("request-asks")
def csr_for_a_server_name(b: Bench) -> Act:
    return asking(b, x509.SubjectAlternativeName([x509.DNSName("fl.example.org")]))


@bad("request-asks")
def csr_for_a_ca(b: Bench) -> Act:
    return asking(b, x509.BasicConstraints(True, None))


@bad("request-key")
def csr_with_weak_rsa(b: Bench) -> Act:
    return asking(b, None, key=weak_rsa())


@bad("request-key")
def csr_with_ed25519(b: Bench) -> Act:
    return asking(b, None, key=ed25519.Ed25519PrivateKey.generate())


@bad("request-key")
def request_with_ed25519_node_key(b: Bench) -> Act:
    return edited(b, node_key="ssh-ed25519 AAAA")


@bad("request-key")
def request_with_garbage_signing_key(b: Bench) -> Act:
    return edited(b, signing_key="-----BEGIN PUBLIC KEY-----")


@bad("request-same-keys")
def one_key_for_two_purposes(b: Bench) -> Act:
    key, signing = keys.new_node_key(), keys.new_signing_key()
    text = request.build_request("hospital-a", key, key, signing, now=NOW)
    return b.approving(b.write(text), fingerprint="0")


@bad("request-proof")
def node_key_copied_from_another(b: Bench) -> Act:
    other = json.loads((b.site("hospital-b") / "request.json").read_text())
    return edited(b, node_key=other["node_key"])


@bad("request-proof")
def signing_key_copied_from_another(b: Bench) -> Act:
    other = json.loads((b.site("hospital-b") / "request.json").read_text())
    return edited(b, signing_key=other["signing_key"])


@bad("request-proof")
def request_with_another_date(b: Bench) -> Act:
    return edited(b, made="2020-01-01T00:00:00Z")


@bad("fingerprint-form")
def half_a_fingerprint(b: Bench) -> Act:
    path = b.site() / "request.json"
    whole = enrolment.read_request(path, now=NOW).fingerprint
    return b.approving(path, fingerprint=whole[:19])


@bad("fingerprint")
def another_fingerprint(b: Bench) -> Act:
    other = enrolment.read_request(b.site("hospital-b") / "request.json", now=NOW)
    return b.approving(b.site() / "request.json", fingerprint=other.fingerprint)


@bad("fingerprint-none")
def no_fingerprint(b: Bench) -> Act:
    return b.approving(b.site() / "request.json", fingerprint="")


@bad("site-enrolled")
def approved_twice(b: Bench) -> Act:
    return b.approving(b.enrolled()[0] / "request.json")


@bad("site-enrolled")
def name_taken_by_another(b: Bench) -> Act:
    b.enrolled()
    thief = make_request(b.folder / "thief", "hospital-a", now=NOW)
    return b.approving(thief.path)


@bad("site-unknown")
def renewed_before_enrolled(b: Bench) -> Act:
    return b.approving(b.site() / "request.json", renew=True)


@bad("site-unknown")
def unknown_site_revoked(b: Bench) -> Act:
    ca = b.ca()
    return lambda: enrolment.revoke(ca, "hospital-z", b.registry, now=NOW)


@bad("site-other-keys")
def renewed_with_other_keys(b: Bench) -> Act:
    folder, _ = b.enrolled()
    return b.approving(make_request(folder, "hospital-a", new_keys=True, now=NOW).path, renew=True)


@bad("site-revoked")
def renewed_after_revocation(b: Bench) -> Act:
    folder = revoked(b)
    return b.approving(folder / "request.json", renew=True)


@bad("site-revoked")
def enrolled_after_revocation(b: Bench) -> Act:
    return b.approving(revoked(b) / "request.json")


@bad("site-revoked-keys")
def readmitted_with_old_keys(b: Bench) -> Act:
    return b.approving(revoked(b) / "request.json", readmit=True)


@bad("key-of-other-site")
def keys_of_another_site(b: Bench) -> Act:
    folder, _ = b.enrolled()
    stolen = request.build_request(
        "hospital-b", keys.new_certificate_key(), keys.load_node_key(folder / "node.key"),
        keys.new_signing_key(), now=NOW,
    )  # fmt: skip
    return b.approving(b.write(stolen))


@bad("enrol-other-site")
def folder_of_another_site(b: Bench) -> Act:
    folder = b.site()
    return lambda: make_request(folder, "hospital-b", now=NOW)


@bad("enrol-half")
def lost_key(b: Bench) -> Act:
    folder = b.site()
    (folder / "signing.key").unlink()
    return lambda: make_request(folder, "hospital-a", now=NOW)
