"""Helpers for every test of `certs/`: what makes a certificate what it is, and a second judge.

`assert_is_ca` and `assert_is_leaf` check the extensions once, for all; `openssl` asks the
command-line tool, which shares no code with us. `craft` makes a certificate that is good but for
what the test says.
"""

import datetime as dt
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from certs import _x509, keys
from certs._x509 import CLIENT, SERVER, Issuer

NOW = _x509.utc_now()
DAY = dt.timedelta(days=1)
LOCALHOST = (x509.DNSName("localhost"),)


def openssl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command-line tool; never raises."""
    return subprocess.run(
        ["openssl", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=30
    )


def openssl_verifies(cert: Path, ca: Path, purpose: str, *more: str | Path) -> bool:
    """Whether `openssl verify -x509_strict` accepts the first certificate in `cert`.

    The rest of the file is its chain, as TLS would send it.
    """
    result = openssl(
        "verify", "-x509_strict", "-purpose", purpose, *more,
        "-CAfile", ca, "-untrusted", cert, cert,
    )  # fmt: skip
    return result.returncode == 0


def assert_is_ca(certificate: x509.Certificate, path_length: int) -> None:
    """A CA: critical CA:TRUE with a path length, may sign certificates and lists, nothing else."""
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert basic.value == x509.BasicConstraints(True, path_length)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert usage.value.crl_sign
    assert not usage.value.digital_signature
    with_key_ids(certificate)


def assert_is_leaf(
    certificate: x509.Certificate, usage: x509.ObjectIdentifier, names: list[str]
) -> None:
    """A leaf: critical CA:FALSE, signs handshakes only, has one usage and exactly these names."""
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert basic.value == x509.BasicConstraints(False, None)
    key = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert key.critical
    assert key.value.digital_signature
    assert not key.value.key_cert_sign
    assert not key.value.crl_sign
    extended = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(extended) == [usage]
    alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in alternative] == names
    with_key_ids(certificate)


def with_key_ids(certificate: x509.Certificate) -> None:
    """Subject and authority key identifiers are there, and the serial is long and random."""
    own = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert own == x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
    certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    assert 64 < certificate.serial_number.bit_length() < 160


@dataclass(frozen=True)
class Crafted:
    """A certificate made by hand, and its key."""

    certificate: x509.Certificate
    key: Any

    @property
    def issuer(self) -> Issuer:
        """This certificate as the signer of others."""
        return Issuer(self.certificate, self.key)


def craft_root(name: str = "test CA", **changes: Any) -> Crafted:
    """A good root, but for `changes`."""
    defaults: dict[str, Any] = {"ca": True, "path_length": 2, "usages": None, "names": None}
    return craft(None, name, **{**defaults, **changes})


def craft(
    issuer: Crafted | None,
    name: str = "localhost",
    *,
    key: Any = None,
    begin: dt.datetime = NOW - DAY,
    end: dt.datetime = NOW + DAY,
    ca: bool = False,
    path_length: int | None = None,
    usages: tuple[x509.ObjectIdentifier, ...] | None = (SERVER,),
    names: tuple[x509.GeneralName, ...] | None = LOCALHOST,
    signs_handshakes: bool = True,
    signs_certificates: bool | None = None,
    extra: x509.UnrecognizedExtension | None = None,
    claim: x509.Name | None = None,
) -> Crafted:
    """A server's leaf signed by `issuer` (by itself when None), good but for what is given."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = _x509.subject(name, "test")
    signer = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(claim or (issuer.certificate.subject if issuer else subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca, path_length if ca else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    signs = ca if signs_certificates is None else signs_certificates
    usage = x509.KeyUsage(
        digital_signature=signs_handshakes and not ca,
        content_commitment=not signs_handshakes,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
    builder = builder.add_extension(usage, critical=True)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if extra:
        builder = builder.add_extension(extra, critical=True)
    return Crafted(builder.sign(signer, hashes.SHA256()), key)


def write_pair(folder: Path, *chain: Crafted, stem: str = "server") -> tuple[Path, Path]:
    """Write `<stem>.crt` (the whole chain) and `<stem>.key` (of the first), 0600."""
    cert, key = folder / f"{stem}.crt", folder / f"{stem}.key"
    cert.write_bytes(_x509.pem(*(link.certificate for link in chain)))
    key.write_bytes(keys.private_pem(chain[0].key))
    key.chmod(0o600)
    return cert, key


def write_roots(path: Path, *roots: Crafted) -> Path:
    """Write the roots to trust."""
    path.write_bytes(_x509.pem(*(root.certificate for root in roots)))
    return path


__all__ = [
    "CLIENT", "DAY", "NOW", "SERVER", "Crafted", "assert_is_ca", "assert_is_leaf", "craft",
    "craft_root", "openssl", "openssl_verifies", "write_pair", "write_roots",
]  # fmt: skip
