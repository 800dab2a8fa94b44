"""The encoding of certificates and revocation lists: extensions, times, algorithms.

Profiles follow RFC 5280; what each extension is for stands beside it. Nothing here decides who
may have a certificate: `certs.ca` does.
"""

import datetime as dt
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ORGANISATION = "fedward"

# A certificate is wanted at once on machines whose clocks differ; five minutes is what Flower
# allows a node's clock to be behind (measured: 305 s).
BACKDATE = dt.timedelta(minutes=5)

SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True)
class Issuer:
    """Who signs: a certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def utc_now() -> dt.datetime:
    """The time, in UTC, to the second: X.509 holds no fractions."""
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


def stamp(moment: dt.datetime) -> str:
    """`moment` as text for files and sentences: `2026-03-01T12:00:00Z`."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_stamp(text: str) -> dt.datetime:
    """The inverse of `stamp`.

    Raises:
        ValueError: the text is not such a time.
    """
    return dt.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC)


def subject(common_name: str, unit: str) -> x509.Name:
    """O=fedward, OU=`unit`, CN=`common_name` (at most 64 characters, RFC 5280 appendix A)."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]),
        ]
    )


def general_names(names: Iterable[str]) -> list[x509.GeneralName]:
    """DNS names and IP addresses as alternative names (RFC 5280, 4.2.1.6)."""
    result: list[x509.GeneralName] = []
    for name in names:
        try:
            result.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            result.append(x509.DNSName(name))
    return result


def authority(
    name: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: Issuer | ec.EllipticCurvePrivateKey,
    *,
    begin: dt.datetime,
    end: dt.datetime,
    path_length: int,
) -> x509.Certificate:
    """A CA certificate for `key`: a root when `signer` is its own key, else below `signer`."""
    builder = _builder(name, key, signer, begin, end)
    builder = builder.add_extension(x509.BasicConstraints(True, path_length), critical=True)
    builder = builder.add_extension(_key_usage(authority=True), critical=True)
    return _sign(builder, signer)


def leaf(
    name: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: Issuer,
    *,
    begin: dt.datetime,
    end: dt.datetime,
    usage: x509.ObjectIdentifier,
    names: Sequence[x509.GeneralName],
    crl_url: str = "",
) -> x509.Certificate:
    """A leaf for exactly one usage: server or client, never both."""
    builder = _builder(name, key, signer, begin, end)
    builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
    builder = builder.add_extension(_key_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if crl_url:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl_url)], None, None, None)
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
    return _sign(builder, signer)


def revocation_list(
    signer: Issuer,
    revoked: Iterable[tuple[int, dt.datetime]],
    *,
    number: int,
    begin: dt.datetime,
    end: dt.datetime,
) -> x509.CertificateRevocationList:
    """A version 2 CRL (RFC 5280, 5): AKI and number, both of which strict clients require."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(signer.certificate.subject)
        .last_update(begin)
        .next_update(end)
        .add_extension(_authority_key(signer), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial, when in revoked:
        # No reason code: it would tell every reader of the list why a hospital left.
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(signer.key, _hash(signer.key))


def request(
    name: x509.Name, key: ec.EllipticCurvePrivateKey, names: Sequence[x509.GeneralName]
) -> x509.CertificateSigningRequest:
    """A CSR (RFC 2986) that asks for a name and nothing else."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, _hash(key))


def pem(
    *things: x509.Certificate | x509.CertificateRevocationList | x509.CertificateSigningRequest,
) -> bytes:
    """PEM text of several certificates or lists, one after the other."""
    return b"".join(thing.public_bytes(serialization.Encoding.PEM) for thing in things)


def _builder(
    name: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: Issuer | ec.EllipticCurvePrivateKey,
    begin: dt.datetime,
    end: dt.datetime,
) -> x509.CertificateBuilder:
    """What every certificate has: names, times, a random serial, SKI and AKI."""
    issuer = signer.certificate.subject if isinstance(signer, Issuer) else name
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        # 159 random bits: RFC 5280, 4.1.2.2 allows 20 octets, and at least 64 bits must be random
        # so that nobody can foretell the bytes that a CA will sign.
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_authority_key(signer), critical=False)
    )


def _authority_key(signer: Issuer | ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    if isinstance(signer, Issuer):
        extension = signer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(extension.value)
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    """A CA signs certificates and lists and nothing else; a leaf signs TLS handshakes."""
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(
    builder: x509.CertificateBuilder, signer: Issuer | ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    key = signer.key if isinstance(signer, Issuer) else signer
    return builder.sign(key, _hash(key))


def _hash(key: ec.EllipticCurvePrivateKey) -> hashes.SHA256 | hashes.SHA384:
    """A hash as long as the curve is strong (RFC 5480, 4)."""
    return hashes.SHA384() if key.curve.key_size > 256 else hashes.SHA256()
