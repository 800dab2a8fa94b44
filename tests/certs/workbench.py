"""A bench on which bad keys, certificates, requests and bundles are made, and the table of them.

`@bad(code)` marks a function that prepares one bad thing in a bench and returns the act that must
be refused. `test_refusals.py` runs them all: the code and the sentence must be the documented
ones, and the act must leave every file as it was.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from certs import CA, _x509, enrolment, keys
from certs._documents import Form
from certs.bundle import FORM as BUNDLE
from certs.bundle import Study
from certs.enrolment import approve, install, make_request
from certs.inspection import (
    check_client_files,
    check_node_key,
    check_server_files,
)
from certs.registry import Registry
from tests.certs.judges import (
    CLIENT,
    DAY,
    NOW,
    Crafted,
    craft,
    craft_root,
    openssl,
    write_pair,
    write_roots,
)

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
