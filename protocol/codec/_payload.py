"""The encoded bytes together with the `Payload` that describes them in a signed header."""

import hashlib
import hmac
from typing import Literal

import numpy as np

from ..errors import ProtocolError, SettingsError
from ..manifest import AdapterManifest
from ..messages import Payload
from ._base import Vector
from ._names import get_codec


def vector_digest(vector: Vector) -> str:
    """SHA-256 (hex) of the little-endian float32 values: what `decoded_digest` holds."""
    return hashlib.sha256(np.ascontiguousarray(vector, "<f4").data).hexdigest()


def encode_payload(
    codec_name: str, vector: Vector, manifest: AdapterManifest, kind: Literal["adapter", "delta"]
) -> tuple[Payload, bytes, Vector]:
    """Write `vector` (float32 [n]) for the wire.

    Returns the description for the header, the bytes, and the vector the receiver will arrive at
    (float32 [n]): the sender goes on with that one, not with what it meant to send.

    Raises:
        SettingsError: unknown codec.
        ProtocolError: the vector does not fit the manifest or is not finite.
    """
    codec = get_codec(codec_name)
    data = codec.encode(vector, manifest)
    decoded = codec.decode(data, manifest.numel)
    payload = Payload(
        codec=codec.name,
        kind=kind,
        numel=manifest.numel,
        size=len(data),
        digest=hashlib.sha256(data).hexdigest(),
        decoded_digest=vector_digest(decoded),
    )
    return payload, data, decoded


def decode_payload(
    payload: Payload,
    data: bytes,
    manifest: AdapterManifest,
    *,
    kind: Literal["adapter", "delta"],
    codec: str | None = None,
) -> Vector:
    """Read and check the bytes beside a header; `codec`, where given, is the one that was agreed.

    Returns:
        float32 [manifest.numel], finite, and equal bit for bit to the sender's.

    Raises:
        ProtocolError: the description is not what was asked for, the bytes are not those it
            describes, or they are not an encoding; nothing was allocated beyond a small multiple
            of the adapter's own size.
    """
    if payload.kind != kind:
        raise ProtocolError(f"a payload of kind {payload.kind!r}, expected {kind!r}")
    if codec is not None and payload.codec != codec:
        raise ProtocolError(f"a payload in codec {payload.codec!r}, agreed was {codec!r}")
    if payload.numel != manifest.numel:
        raise ProtocolError(f"a payload of {payload.numel} values, expected {manifest.numel}")
    if payload.size != len(data):
        raise ProtocolError(f"payload has {len(data)} bytes, header says {payload.size}")
    if not hmac.compare_digest(hashlib.sha256(data).hexdigest(), payload.digest):
        raise ProtocolError("payload's SHA-256 is not the one in the header")
    try:
        decoder = get_codec(payload.codec)
    except SettingsError as error:
        raise ProtocolError(f"unknown codec {payload.codec!r}") from error
    vector = decoder.decode(data, manifest.numel)
    if not hmac.compare_digest(vector_digest(vector), payload.decoded_digest):
        raise ProtocolError("the decoded adapter's SHA-256 is not the one the sender arrived at")
    return vector
