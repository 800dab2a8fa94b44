"""How an adapter, or the change of one, is written on the wire.

    payload, data, sent = encode_payload("int4", delta, manifest, kind="delta")
    vector = decode_payload(payload, data, manifest, kind="delta")

| name | bits a value | error on a normal vector | what it is |
|---|---|---|---|
| `fp32` | 32 | 0 | the float32 values themselves |
| `fp16` | 16 | 0.02 % | half precision under one common power of two |
| `bf16` | 16 | 0.2 % | the upper half of a float32 |
| `int8` | 8.25 | 0.6 % | blocks of 64 with one float16 scale |
| `int4` | 4.25 | 10.8 % | the same |
| `nf4` | 4.25 | 9.2 % | the same, on the quantiles of a normal distribution |
| `int2` | 2.25 | 34 % | the same, four levels |
| `topk-0.1` | 2.1 | - | the largest tenth in float16 and their places |

`int4-s8` and its like have 8-bit scales (0.125 bit a value less). `+zstd` behind any name
compresses what is left: `bench/codecs.py` says what that brings.

Both ends arrive at the same float32 vector bit for bit: decoding uses integer operations, IEEE 754
conversions and single additions and multiplications only, and `Payload.decoded_digest` proves it
every round. Encoding the same vector on the same machine gives the same bytes.
"""

from ._base import MAX_MAGNITUDE, Codec
from ._chain import DeltaChain, Link, follow
from ._feedback import ErrorFeedback
from ._layout import (
    Factor,
    factor_of,
    join_control,
    module_of,
    narrow,
    of_rank,
    split_control,
    trained_part,
    widen,
    with_control,
    with_merges,
    with_rank,
)
from ._names import get_codec, known_codecs
from ._payload import decode_payload, encode_payload, vector_digest

__all__ = [
    "MAX_MAGNITUDE",
    "Codec",
    "DeltaChain",
    "ErrorFeedback",
    "Factor",
    "Link",
    "decode_payload",
    "encode_payload",
    "factor_of",
    "follow",
    "get_codec",
    "join_control",
    "known_codecs",
    "module_of",
    "narrow",
    "of_rank",
    "split_control",
    "trained_part",
    "vector_digest",
    "widen",
    "with_control",
    "with_merges",
    "with_rank",
]
