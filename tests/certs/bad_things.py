"""The table of bad keys, certificates, requests and bundles, and what each must be refused with.

`@bad(code)` marks a function that prepares one bad thing in a bench and returns the act that must
be refused. `test_refusals.py` runs them all: the code and the sentence must be the documented
ones, and the act must leave every file as it was.
"""

import datetime as dt
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from judges import CLIENT, DAY, NOW, Crafted, craft, craft_root, openssl, write_pair, write_roots

from certs import CA, _x509, audit, enrolment, keys, request, rotation
from certs._documents import Form
from certs.bundle import FORM as BUNDLE
from certs.bundle import Study
from certs.enrolment import approve, install, make_request
from certs.inspection import (
    check_ca_file,
    check_client_files,
    check_node_key,
    check_server_files,
    check_signing_key,
)
from certs.local import make_federation
from certs.registry import Registry

Act = Callable[[], object]


@dataclass(frozen=True)
class Bench:
    """A folder to spoil, a small PKI made by hand in it, and a coordinator with his records."""

    folder: Path
    root: Crafted
    study: Study

    @property
    def roots(self) -> Path:
        """The file of roots that a server's check is given."""
        return self.folder / "roots.crt"

    @property
    def registry(self) -> Registry:
        """The coordinator's registry."""
        return Registry(self.folder / "registry")

    def ca(self) -> CA:
        """The coordinator's CA, made when first asked for."""
        if (self.folder / "ca").exists():
            return CA.load(self.folder / "ca")
        return CA.create(now=NOW).save(self.folder / "ca")

    def server(self, *chain: Crafted, crl: Path | None = None) -> Act:
        """The check of a server with this chain and the first one's key."""
        cert, key = write_pair(self.folder, *chain)
        return lambda: check_server_files(cert, key, self.roots, name="localhost", crl=crl, now=NOW)

    def good(self) -> tuple[Path, Path]:
        """A server's good certificate and key."""
        return write_pair(self.folder, craft(self.root))

    def check(self, cert: Path, key: Path) -> Act:
        """The check of a server's two files."""
        return lambda: check_server_files(cert, key, self.roots, name="localhost", now=NOW)

    def site(self, name: str = "hospital-a") -> Path:
        """A hospital's folder with its keys and request."""
        return make_request(self.folder / name, name, now=NOW).path.parent

    def approving(self, path: Path, **options: Any) -> Act:
        """The approval of a request file, with its own fingerprint unless told otherwise."""
        if "fingerprint" not in options and not options.get("renew"):
            options["fingerprint"] = enrolment.read_request(path, now=NOW).fingerprint
        ca = self.ca()
        return lambda: approve(ca, path, self.registry, self.study, now=NOW, **options)

    def enrolled(self, name: str = "hospital-a") -> tuple[Path, Path]:
        """A hospital's folder, and the bundle that was approved for it."""
        folder = self.site(name)
        approval = approve(
            self.ca(), folder / "request.json", self.registry, self.study, now=NOW,
            fingerprint=enrolment.read_request(folder / "request.json", now=NOW).fingerprint,
        )  # fmt: skip
        return folder, self.write(approval.bundle, f"{name}.bundle")

    def write(self, data: bytes | str, name: str = "bad") -> Path:
        """A file with these bytes, 0600."""
        path = self.folder / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        path.chmod(0o600)
        return path


def new_bench(folder: Path) -> Bench:
    """A fresh bench."""
    root = craft_root()
    write_roots(folder / "roots.crt", root)
    study = Study(ed25519.Ed25519PrivateKey.generate().public_key(), "fl.example.org:443")
    return Bench(folder, root, study)


TABLE: list[tuple[str, Callable[[Bench], Act]]] = []


def bad(code: str) -> Callable[[Callable[[Bench], Act]], Callable[[Bench], Act]]:
    """Enter a function in the table, to be refused with `code`."""

    def enter(prepare: Callable[[Bench], Act]) -> Callable[[Bench], Act]:
        TABLE.append((code, prepare))
        return prepare

    return enter


# Files ---------------------------------------------------------------------------------------


@bad("file-missing")
def no_certificate(b: Bench) -> Act:
    return b.check(b.folder / "none.crt", b.good()[1])


@bad("file-missing")
def no_key(b: Bench) -> Act:
    return b.check(b.good()[0], b.folder / "none.key")


@bad("file-empty")
def empty_certificate(b: Bench) -> Act:
    return b.check(b.write(b"\n \n"), b.good()[1])


@bad("file-not-regular")
def folder_for_certificate(b: Bench) -> Act:
    return b.check(b.folder, b.good()[1])


@bad("file-not-regular")
def pipe_for_certificate(b: Bench) -> Act:
    os.mkfifo(b.folder / "pipe")
    return b.check(b.folder / "pipe", b.good()[1])


@bad("file-unreadable")
def link_to_itself(b: Bench) -> Act:
    (b.folder / "loop").symlink_to(b.folder / "loop")
    return b.check(b.folder / "loop", b.good()[1])


@bad("file-oversized")
def oversized_certificate(b: Bench) -> Act:
    cert, key = b.good()
    return b.check(b.write(cert.read_bytes() * 200), key)


@bad("file-oversized")
def oversized_request(b: Bench) -> Act:
    path = b.site() / "request.json"
    path.write_bytes(path.read_bytes() + b" " * 65536)
    return b.approving(path, fingerprint="0" * 32)


@bad("file-oversized")
def oversized_bundle(b: Bench) -> Act:
    folder, bundle = b.enrolled()
    bundle.write_bytes(bundle.read_bytes() + b" " * 65536)
    return lambda: install(bundle, folder, now=NOW)


@bad("file-unwritable")
def federation_below_a_file(b: Bench) -> Act:
    b.write("", "file")
    return lambda: make_federation(b.folder / "file" / "x", ["hospital-a"])


# Private keys --------------------------------------------------------------------------------


@bad("key-open")
def key_that_others_read(b: Bench) -> Act:
    cert, key = b.good()
    key.chmod(0o644)
    return b.check(cert, key)


@bad("key-open")
def key_that_the_group_writes(b: Bench) -> Act:
    cert, key = b.good()
    key.chmod(0o660)
    return lambda: check_server_files(cert, key, b.roots, now=NOW, group_may_read=True)


@bad("key-truncated")
def truncated_key(b: Bench) -> Act:
    cert, key = b.good()
    return b.check(cert, b.write(key.read_bytes()[:120]))


@bad("key-garbage")
def garbage_key(b: Bench) -> Act:
    return b.check(b.good()[0], b.write(b"\x00\xff not a key"))


@bad("key-garbage")
def key_with_flipped_bytes(b: Bench) -> Act:
    cert, key = b.good()
    return b.check(cert, b.write(key.read_bytes().replace(b"MIGH", b"MXGH")))


@bad("key-is-certificate")
def certificate_for_key(b: Bench) -> Act:
    cert, _ = b.good()
    cert.chmod(0o600)
    return b.check(cert.rename(b.folder / "x"), b.write((b.folder / "x").read_bytes()))


@bad("key-locked")
def locked_key(b: Bench) -> Act:
    leaf = craft(b.root)
    cert, _ = write_pair(b.folder, leaf)
    return b.check(cert, b.write(keys.private_pem(leaf.key, "secret")))


@bad("key-passphrase")
def wrong_passphrase(b: Bench) -> Act:
    path = b.write(keys.private_pem(keys.new_certificate_key(), "secret"))
    return lambda: keys.load_certificate_key(path, passphrase="Secret")


@bad("key-swapped")
def swapped_key(b: Bench) -> Act:
    return b.check(b.good()[0], b.write(keys.private_pem(keys.new_certificate_key())))


@bad("key-kind")
def signing_key_for_tls(b: Bench) -> Act:
    return b.check(b.good()[0], b.write(keys.private_pem(keys.new_signing_key())))


@bad("key-weak")
def rsa_1024_key(b: Bench) -> Act:
    return b.check(b.good()[0], b.write(keys.private_pem(weak_rsa())))


@bad("key-weak")
def rsa_1024_certificate(b: Bench) -> Act:
    return b.server(craft(b.root, key=weak_rsa()))


@bad("key-weak")
def p192_certificate(b: Bench) -> Act:
    return b.server(craft(b.root, key=ec.generate_private_key(ec.SECP224R1())))


@bad("node-key-kind")
def ed25519_node_key(b: Bench) -> Act:
    return node(b, ed25519.Ed25519PrivateKey.generate())


@bad("node-key-kind")
def rsa_node_key(b: Bench) -> Act:
    return node(b, rsa.generate_private_key(65537, 2048))


@bad("node-key-format")
def pem_node_key(b: Bench) -> Act:
    path = b.write(keys.private_pem(keys.new_node_key()))
    return lambda: check_node_key(path)


@bad("key-locked")
def locked_node_key(b: Bench) -> Act:
    path = b.folder / "node.key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "secret", "-f", path], check=True
    )
    return lambda: check_node_key(path)


@bad("key-truncated")
def truncated_node_key(b: Bench) -> Act:
    path = b.site() / "node.key"
    path.write_bytes(path.read_bytes()[:200])
    return lambda: check_node_key(path)


@bad("node-public-key")
def garbage_node_public_key(b: Bench) -> Act:
    site, public = b.site(), b.write("ssh-ed25519 AAAA nobody")
    return lambda: check_node_key(site / "node.key", public)


@bad("node-key-swapped")
def public_half_of_another_node(b: Bench) -> Act:
    one, other = b.site(), b.site("hospital-b")
    return lambda: check_node_key(one / "node.key", other / "node.pub")


@bad("signing-key-kind")
def node_key_for_signing(b: Bench) -> Act:
    path = b.write(keys.private_pem(keys.new_node_key()))
    return lambda: check_signing_key(path)


@bad("signing-public-key")
def node_public_for_signing(b: Bench) -> Act:
    site = b.site()
    return lambda: check_signing_key(site / "signing.key", site / "node.pub")


@bad("signing-key-swapped")
def public_half_of_another_trainer(b: Bench) -> Act:
    one, other = b.site(), b.site("hospital-b")
    return lambda: check_signing_key(one / "signing.key", other / "signing.pub")


# Certificates --------------------------------------------------------------------------------


@bad("cert-der")
def der_certificate(b: Bench) -> Act:
    der = craft(b.root).certificate.public_bytes(serialization.Encoding.DER)
    return b.check(b.write(der), b.good()[1])


@bad("cert-truncated")
def truncated_certificate(b: Bench) -> Act:
    cert, key = b.good()
    return b.check(b.write(cert.read_bytes()[:300]), key)


@bad("cert-garbage")
def garbage_certificate(b: Bench) -> Act:
    return b.check(b.write(os.urandom(2000) + b"!"), b.good()[1])


@bad("cert-garbage")
def certificate_with_flipped_bytes(b: Bench) -> Act:
    cert, key = b.good()
    return b.check(b.write(cert.read_bytes().replace(b"\nMI", b"\nXX", 1)), key)


@bad("cert-is-key")
def key_for_certificate(b: Bench) -> Act:
    _, key = b.good()
    return b.check(b.write(key.read_bytes()), key)


@bad("cert-is-key")
def key_in_the_roots(b: Bench) -> Act:
    b.roots.write_bytes(b.roots.read_bytes() + keys.private_pem(b.root.key))
    return b.check(*b.good())


@bad("cert-is-request")
def request_for_certificate(b: Bench) -> Act:
    csr = _x509.request(_x509.subject("a", "b"), keys.new_certificate_key(), [])
    return b.check(b.write(_x509.pem(csr)), b.good()[1])


@bad("cert-sha1")
def sha1_certificate(b: Bench) -> Act:
    return openssl_leaf(b, "-sha1")


@bad("cert-version")
def version_1_certificate(b: Bench) -> Act:
    return openssl_leaf(b, "-sha256", extensions=False)


@bad("cert-self-signed")
def self_signed_leaf(b: Bench) -> Act:
    return b.server(craft(None))


@bad("cert-self-signed")
def self_signed_by_openssl(b: Bench) -> Act:
    cert, key = b.folder / "self.crt", b.folder / "self.key"
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", "/CN=localhost", "-keyout", key, "-out", cert)  # fmt: skip
    return lambda: check_server_files(cert, key, b.roots)


@bad("cert-no-names")
def certificate_without_names(b: Bench) -> Act:
    return b.server(craft(b.root, names=None))


@bad("cert-extensions")
def certificate_with_a_broken_extension(b: Bench) -> Act:
    oid = x509.SubjectAlternativeName.oid
    broken = x509.UnrecognizedExtension(oid, b"\x30\x05\x00")
    return b.server(craft(b.root, names=None, extra=broken))


@bad("cert-is-ca")
def root_for_leaf(b: Bench) -> Act:
    return b.server(b.root)


@bad("cert-names")
def two_stars(b: Bench) -> Act:
    return b.server(craft(b.root, names=(x509.DNSName("*.localhost"),)))


@bad("cert-names")
def names_with_control_characters(b: Bench) -> Act:
    return b.server(craft(b.root, names=(x509.DNSName("a\x1b[31mb\nlocalhost"),)))


@bad("cert-identity")
def another_sites_certificate(b: Bench) -> Act:
    return client(b, "fedward://hospital/hospital-b")


@bad("cert-identity")
def an_operators_certificate(b: Bench) -> Act:
    return client(b, "fedward://operator/hospital-a")


@bad("cert-identity")
def two_identities(b: Bench) -> Act:
    return client(b, "fedward://hospital/hospital-a", "fedward://coordinator/hospital-a")


@bad("cert-identity")
def common_name_only(b: Bench) -> Act:
    return client(b)


@bad("cert-usage")
def server_certificate_at_a_hospital(b: Bench) -> Act:
    cert, key = b.good()
    return lambda: check_client_files(cert, key, b.roots, site="hospital-a", now=NOW)


@bad("cert-order")
def root_before_leaf(b: Bench) -> Act:
    leaf, middle = below(b)
    return b.server(replace(middle, key=leaf.key), leaf)


@bad("cert-order")
def chain_in_the_wrong_order(b: Bench) -> Act:
    upper = craft(b.root, "upper", ca=True, path_length=1, usages=None, names=None)
    lower = craft(upper, "lower", ca=True, path_length=0, usages=None, names=None)
    return b.server(craft(lower), upper, lower)


@bad("cert-stray")
def stray_certificate(b: Bench) -> Act:
    return b.server(craft(b.root), craft_root("another CA"))


@bad("cert-forged")
def forged_intermediate(b: Bench) -> Act:
    leaf, _ = below(b)
    return b.server(leaf, below(b)[1])


@bad("ca-not-root")
def leaf_among_the_roots(b: Bench) -> Act:
    write_roots(b.roots, b.root, craft(b.root))
    return b.check(*b.good())


@bad("ca-not-root")
def self_signed_leaf_as_root(b: Bench) -> Act:
    path = write_roots(b.folder / "x.crt", craft(None))
    return lambda: check_ca_file(path, now=NOW)


@bad("cert-expired")
def ended_root(b: Bench) -> Act:
    write_roots(b.roots, craft_root(key=b.root.key, begin=NOW - 9 * DAY, end=NOW - DAY))
    return b.check(*b.good())


@bad("cert-garbage")
def garbage_roots(b: Bench) -> Act:
    b.roots.write_text("-----BEGIN NOTHING-----")
    return b.check(*b.good())


# Revocation lists ----------------------------------------------------------------------------


@bad("crl-garbage")
def garbage_list(b: Bench) -> Act:
    return b.server(craft(b.root), crl=b.write("no list"))


@bad("crl-garbage")
def list_of_noise(b: Bench) -> Act:
    noise = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"
    return b.server(craft(b.root), crl=b.write(noise))


@bad("crl-none")
def list_of_another_ca(b: Bench) -> Act:
    return b.server(craft(b.root), crl=crl(b, craft_root("another CA")))


@bad("crl-forged")
def forged_list(b: Bench) -> Act:
    return b.server(craft(b.root), crl=crl(b, craft_root()))


@bad("crl-expired")
def ended_list(b: Bench) -> Act:
    return b.server(craft(b.root), crl=crl(b, b.root, begin=NOW - 9 * DAY, end=NOW - DAY))


@bad("crl-not-yet")
def list_of_tomorrow(b: Bench) -> Act:
    return b.server(craft(b.root), crl=crl(b, b.root, begin=NOW + DAY, end=NOW + 9 * DAY))


@bad("cert-revoked")
def revoked_certificate(b: Bench) -> Act:
    leaf = craft(b.root)
    return b.server(leaf, crl=crl(b, b.root, leaf))


# Names ---------------------------------------------------------------------------------------

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


# Requests ------------------------------------------------------------------------------------


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


# Bundles -------------------------------------------------------------------------------------


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


# The coordinator's records -------------------------------------------------------------------


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


# Makers --------------------------------------------------------------------------------------


def weak_rsa() -> rsa.RSAPrivateKey:
    """RSA of 1024 bits: what some appliances still make."""
    return rsa.generate_private_key(65537, 1024)


def node(b: Bench, key: Any) -> Act:
    """The check of a node key of another kind, in OpenSSH format."""
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )  # fmt: skip
    path = b.write(text)
    return lambda: check_node_key(path)


def client(b: Bench, *uris: str) -> Act:
    """The check of hospital-a's certificate, when it names `uris`."""
    names = tuple(x509.UniformResourceIdentifier(uri) for uri in uris)
    cert, key = write_pair(b.folder, craft(b.root, "hospital-a", usages=(CLIENT,), names=names))
    return lambda: check_client_files(cert, key, b.roots, site="hospital-a", now=NOW)


def below(b: Bench) -> tuple[Crafted, Crafted]:
    """A leaf, and the intermediate that signed it."""
    middle = craft(b.root, "middle", ca=True, path_length=0, usages=None, names=None)
    return craft(middle), middle


def crl(
    b: Bench, issuer: Crafted, *revoked: Crafted, begin: Any = NOW - DAY, end: Any = NOW + DAY
) -> Path:
    """A revocation list on disk."""
    entries = [(leaf.certificate.serial_number, NOW - DAY) for leaf in revoked]
    text = _x509.revocation_list(issuer.issuer, entries, number=1, begin=begin, end=end)
    return b.write(_x509.pem(text), "crl.pem")


def openssl_leaf(b: Bench, digest: str, *, extensions: bool = True) -> Act:
    """A leaf signed by OpenSSL with a digest that our own library refuses to use."""
    root_key = b.write(keys.private_pem(b.root.key), "root.key")
    key, csr, cert = (b.folder / name for name in ("s.key", "s.csr", "s.crt"))
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
            "/CN=localhost", "-keyout", key, "-out", csr)  # fmt: skip
    more: list[str | Path] = []
    if extensions:
        more = ["-extfile", b.write("subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth")]
    made = openssl("x509", "-req", "-in", csr, "-CA", b.roots, "-CAkey", root_key, digest,
                   "-out", cert, *more)  # fmt: skip
    assert made.returncode == 0, made.stderr
    return b.check(cert, key)


def json_edit(text: bytes, **changes: Any) -> bytes:
    """A JSON document with other fields; None takes a field away."""
    body = {**json.loads(text), **changes}
    return json.dumps({k: v for k, v in body.items() if v is not None}).encode()


def edited(b: Bench, **changes: Any) -> Act:
    """The approval of hospital-a's request, after somebody changed fields in it."""
    changes = {k: v.decode() if isinstance(v, bytes) else v for k, v in changes.items()}
    text = json_edit((b.site() / "request.json").read_bytes(), **changes)
    return b.approving(b.write(text), fingerprint="0")


def asking(b: Bench, extension: Any, *, key: Any = None) -> Act:
    """The approval of a request whose CSR asks for `extension`, or is made with another key."""
    key = key or keys.new_certificate_key()
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        _x509.subject("hospital-a", "hospital")
    )
    if extension is not None:
        builder = builder.add_extension(extension, critical=False)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return edited(b, csr=_x509.pem(builder.sign(key, digest)))


def revoked(b: Bench) -> Path:
    """The folder of a hospital that was revoked."""
    folder, _ = b.enrolled()
    enrolment.revoke(b.ca(), "hospital-a", b.registry, now=NOW)
    return folder


def installing(b: Bench, edit: Callable[[bytes], bytes]) -> Act:
    """The installation of a bundle that somebody edited on the way."""
    folder, bundle = b.enrolled()
    path = b.write(edit(bundle.read_bytes()))
    return lambda: install(path, folder, now=NOW)


def resigned(ca: CA, body: dict[str, Any]) -> bytes:
    """A bundle with other fields, signed by the CA as if it had meant them."""
    form: Form = BUNDLE
    fields = {name: body[name] for name in form.fields}
    return form.dump(fields, {"ca": ca.sign_bytes(form.statement(fields))})


def rogue_bundle(b: Bench, folder: Path) -> Path:
    """A bundle for hospital-a from a CA that it does not know, otherwise without fault."""
    elsewhere = Registry(b.folder / "rogue")
    approval = approve(
        CA.create(), folder / "request.json", elsewhere, b.study, now=NOW,
        fingerprint=enrolment.read_request(folder / "request.json", now=NOW).fingerprint,
    )  # fmt: skip
    return b.write(approval.bundle, "rogue.bundle")
