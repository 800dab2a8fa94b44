"""Header bytes, signature, payload: the unit that travels, and how it is checked.

The signature (Ed25519, RFC 8032) is over the header's exact bytes with a context string in front,
and the header names the payload's SHA-256, the study, round, site and request id. So a node that
learns another's Flower message id cannot answer in its name, and the SuperLink's host cannot alter
an update unseen.
"""

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from pydantic import BaseModel, ValidationError

from .errors import ProtocolError, SettingsError
from .messages import Payload

MAX_HEADER_BYTES = 32 << 20  # a manifest of 100,000 tensors with long names

Header = TypeVar("Header", bound=BaseModel)


class SignatureError(ProtocolError):
    """The header was not signed by the key it should have been signed by."""


@dataclass(frozen=True)
class Envelope:
    """What is sent: `header` is JSON in UTF-8, `payload` the encoded adapter (perhaps empty)."""

    header: bytes
    signature: bytes
    payload: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of all three parts: what we count as payload bytes of a message."""
        return len(self.header) + len(self.signature) + len(self.payload)


def seal(header: BaseModel, payload: bytes, key: Ed25519PrivateKey, *, context: str) -> Envelope:
    """Sign `header` for `context` ("request", "reply" or "progress")."""
    body = header.model_dump_json(exclude_none=True).encode()
    return Envelope(body, key.sign(_signed(body, context)), payload)


def unseal(
    envelope: Envelope, model: type[Header], key: Ed25519PublicKey, *, context: str
) -> Header:
    """Check the signature, then the header; the payload is checked by `check_payload`.

    Raises:
        SignatureError: not signed by `key` for `context`.
        ProtocolError: signed, but not a valid header.
    """
    if len(envelope.header) > MAX_HEADER_BYTES:
        raise ProtocolError(f"a header of {len(envelope.header)} bytes is too large")
    try:
        key.verify(envelope.signature, _signed(envelope.header, context))
    except InvalidSignature as error:
        raise SignatureError(f"the {context} is not signed by the expected key") from error
    try:
        return model.model_validate_json(envelope.header)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ProtocolError(f"malformed {context}: {where}: {first['msg']}") from error


def check_payload(payload: bytes, description: Payload | None) -> None:
    """Check that the bytes beside a header are the ones it names.

    Raises:
        ProtocolError: they are not.
    """
    if description is None:
        if payload:
            raise ProtocolError(f"{len(payload)} payload bytes that the header does not name")
        return
    if len(payload) != description.size:
        raise ProtocolError(f"payload has {len(payload)} bytes, header says {description.size}")
    if not hmac.compare_digest(hashlib.sha256(payload).hexdigest(), description.digest):
        raise ProtocolError("payload's SHA-256 is not the one in the header")


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 private key (PEM, PKCS 8)."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot read the signing key: {error.strerror or error}"
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"{path}: not an unencrypted private key in PEM format") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"{path}: a {type(key).__name__}; the signing key must be Ed25519")
    return key


def load_verify_key(path: Path) -> Ed25519PublicKey:
    """Read an Ed25519 public key (PEM)."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot read the public key: {error.strerror or error}"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"{path}: not a public key in PEM format") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SettingsError(f"{path}: a {type(key).__name__}; the key must be Ed25519")
    return key


def _signed(body: bytes, context: str) -> bytes:
    return b"fedward-v1-" + context.encode() + b"\0" + body
