"""From bytes to certificates and revocation lists, each failure with its sentence."""

import re
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from certs.files import MAX_BYTES, read_limited
from certs.sentences import refuse

# A list of ten thousand revoked certificates is 500 KiB.
MAX_LIST_BYTES = 4 * 1024 * 1024

_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_LIST = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)


def read_certificates(path: Path, *, with_key: bool = False) -> list[x509.Certificate]:
    """The certificates of a PEM file, in its order; `with_key` lets a key stand beside them.

    Raises:
        CertError: `file-*`, `cert-der`, `cert-is-key`, `cert-is-request`, `cert-truncated`,
            `cert-garbage`.
    """
    return parse_certificates(read_limited(path, limit=MAX_BYTES), path, with_key=with_key)


def parse_certificates(
    data: bytes, source: object, *, with_key: bool = False
) -> list[x509.Certificate]:
    """The certificates in PEM bytes; `source` is named when they are refused."""
    if data[:2] == b"\x30\x82":  # an ASN.1 sequence with a two-byte length
        raise refuse("cert-der", file=source)
    if b"PRIVATE KEY-----" in data and not with_key:
        raise refuse("cert-is-key", file=source)
    if _CERTIFICATE not in data:
        asks = b"-----BEGIN CERTIFICATE REQUEST-----" in data
        raise refuse("cert-is-request" if asks else "cert-garbage", file=source)
    if data.count(_CERTIFICATE) != data.count(b"-----END CERTIFICATE-----"):
        raise refuse("cert-truncated", file=source)
    try:
        certificates = x509.load_pem_x509_certificates(data)
        for certificate in certificates:
            _unfold(certificate)
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise refuse("cert-garbage", file=source) from error
    return certificates


def read_lists(path: Path) -> list[x509.CertificateRevocationList]:
    """The revocation lists of a PEM file.

    Raises:
        CertError: `file-*`, `crl-garbage`.
    """
    blocks = _LIST.findall(read_limited(path, limit=MAX_LIST_BYTES))
    try:
        lists = [x509.load_pem_x509_crl(block) for block in blocks]
        for crl in lists:
            # The library decodes these when first asked; damage is to be found here.
            _ = (crl.issuer, crl.last_update_utc, crl.next_update_utc, crl.signature)
            _ = (crl.signature_algorithm_oid, len(crl), crl.extensions)
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise refuse("crl-garbage", file=path) from error
    if not lists:
        raise refuse("crl-garbage", file=path)
    return lists


def _unfold(certificate: x509.Certificate) -> None:
    """Decode what the library decodes only when first asked, so that damage is found here."""
    _ = (certificate.version, certificate.subject, certificate.issuer, certificate.public_key())
    _ = (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    _ = certificate.signature_hash_algorithm
