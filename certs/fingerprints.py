"""Short fingerprints that two people compare by telephone.

128 bits of SHA-256, as 8 groups of 4 hexadecimal digits: long enough that nobody finds a second
key with the same digits (a preimage takes 2^128 tries), short enough to be read aloud.
"""

import hashlib
import hmac
import re

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from certs.sentences import refuse

GROUPS = 8


def fingerprint(data: bytes) -> str:
    """The fingerprint of `data`: `1a2b-3c4d-...`, 8 groups."""
    return _grouped(hashlib.sha256(data).hexdigest())


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    """The fingerprint of a certificate: the first 128 bits of what `openssl x509 -fingerprint
    -sha256` prints."""
    return _grouped(certificate.fingerprint(hashes.SHA256()).hex())


def same_fingerprint(given: str, expected: str) -> bool:
    """Whether a person typed `expected`, in any case, with any of `-`, `:` or spaces between.

    Raises:
        CertError: `fingerprint-form` when fewer or other digits were typed; a prefix is not
            accepted, because a short one can be forged.
    """
    digits = re.sub(r"[\s:-]", "", given).lower()
    if not re.fullmatch(f"[0-9a-f]{{{4 * GROUPS}}}", digits):
        raise refuse("fingerprint-form", got=given)
    return hmac.compare_digest(_grouped(digits), expected)


def _grouped(digits: str) -> str:
    return "-".join(digits[start : start + 4] for start in range(0, 4 * GROUPS, 4))
