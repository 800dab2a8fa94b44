"""What HAProxy looks up but cannot read itself: revoked serials, and whose node key is whose.

HAProxy checks the revocation list in a handshake. A connection that was made before stays open,
so every request's serial is looked up too, in a list that is made here from the same file.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterator

# SubjectPublicKeyInfo (RFC 5480) up to the point, by OpenSSH's name of the curve: all that is
# missing between an OpenSSH public key and the PEM that Flower sends in a header.
_SPKI = {
    "nistp256": bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200"),
    "nistp384": bytes.fromhex("3076301006072a8648ce3d020106052b81040022036200"),
    "nistp521": bytes.fromhex("30819b301006072a8648ce3d020106052b8104002303818600"),
}
_SITE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_PEM_LIST = re.compile(rb"-----BEGIN X509 CRL-----\s(.*?)-----END X509 CRL-----", re.DOTALL)


class TableError(Exception):
    """A file that tables are made from is not what it should be."""


def key_owners(registry: bytes) -> dict[str, str]:
    """SHA-256 of the `flwr-public-key` header (upper-case hex, as HAProxy writes it) to site.

    Revoked hospitals are left out, so their keys are nobody's.

    Raises:
        TableError: not a registry, or a key in it is not one.
    """
    try:
        sites = json.loads(registry)["sites"].items()
        return {
            _header_digest(site["node_public_key"]): _checked(name)
            for name, site in sites
            if site.get("revoked_at") is None
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TableError(f"the registry of hospitals is damaged: {error!r}") from error


def revoked_serials(lists: bytes) -> list[str]:
    """The serials in a file of PEM revocation lists, as `ssl_c_serial,hex` writes them.

    Raises:
        TableError: no list, or one that is not DER.
    """
    found = _PEM_LIST.findall(lists)
    if not found:
        raise TableError("no revocation list in the file")
    try:
        return sorted({serial for pem in found for serial in _serials(base64.b64decode(pem))})
    except (IndexError, ValueError, binascii.Error) as error:
        raise TableError(f"the revocation list is damaged: {error!r}") from error


def _checked(name: str) -> str:
    if not _SITE.fullmatch(name):
        raise ValueError(f"{name!r} is not a site's name")
    return name


def _header_digest(openssh: str) -> str:
    blob = base64.b64decode(openssh.split()[1], validate=True)
    _, curve, point = _strings(blob)
    der = base64.b64encode(_SPKI[curve.decode()] + point).decode()
    lines = [der[start : start + 64] for start in range(0, len(der), 64)]
    pem = "\n".join(["-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----", ""])
    return hashlib.sha256(base64.b64encode(pem.encode())).hexdigest().upper()


def _strings(blob: bytes) -> Iterator[bytes]:
    """The strings of an SSH wire encoding (RFC 4251, 5)."""
    while blob:
        size = int.from_bytes(blob[:4])
        if len(blob) < 4 + size:
            raise ValueError("truncated key")
        yield blob[4 : 4 + size]
        blob = blob[4 + size :]


def _serials(der: bytes) -> Iterator[str]:
    """CertificateList ::= { tbs { [version], algorithm, issuer, this, [next], [revoked] ... } }"""
    ((_, whole),) = _elements(der)
    (_, tbs), *_ = _elements(whole)
    parts = _elements(tbs)
    if parts[0][0] == _INTEGER:  # version
        del parts[0]
    del parts[:3]  # algorithm, issuer, thisUpdate
    if parts and parts[0][0] in _TIMES:  # nextUpdate
        del parts[0]
    if not parts or parts[0][0] != _SEQUENCE:
        return  # nobody is revoked
    for _, entry in _elements(parts[0][1]):
        (_, serial), *_ = _elements(entry)
        yield (serial.lstrip(b"\0") or b"\0").hex().upper()


_INTEGER, _SEQUENCE, _TIMES = 0x02, 0x30, (0x17, 0x18)


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of each element, one level deep (X.690, definite lengths)."""
    result = []
    at = 0
    while at < len(der):
        tag, size, at = der[at], der[at + 1], at + 2
        if size >= 0x80:
            octets = size & 0x7F
            size, at = int.from_bytes(der[at : at + octets]), at + octets
        if at + size > len(der):
            raise ValueError("truncated")
        result.append((tag, der[at : at + size]))
        at += size
    return result
