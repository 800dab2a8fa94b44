"""How an adapter, or the change of one, is written on the wire.

    codec = get_codec("int4+zstd")
    payload, data, sent = encode_payload("int4", delta, manifest, kind="delta")
    vector = decode_payload(payload, data, manifest, kind="delta")

| name | bits a value | what it is |
|---|---|---|
| `fp32` | 32 | the float32 values themselves |
| `bf16`, `fp16` | 16 | half precision; fp16 under one common power of two |

Both ends arrive at the same float32 vector bit for bit: decoding uses integer operations, IEEE 754
conversions and single multiplications only, and `Payload.decoded_digest` proves it every round.
"""

from ._base import MAX_MAGNITUDE, Codec
from ._names import get_codec, known_codecs
from ._payload import decode_payload, encode_payload, vector_digest

__all__ = [
    "MAX_MAGNITUDE",
    "Codec",
    "decode_payload",
    "encode_payload",
    "get_codec",
    "known_codecs",
    "vector_digest",
]
