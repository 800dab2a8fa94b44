"""What every codec shares: the interface, the 16-byte header and the checks at the edge.

    magic "FWC1" | codec tag u8 | options u8 | exponent i16 | numel u64 | body        little-endian

`exponent` is a common power of two: values are stored divided by 2^exponent. A change of an
adapter is often around 1e-6, where float16 keeps two or three bits; scaled by a power of two,
which is exact, it keeps all eleven.
"""

import math
import struct
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import ProtocolError
from ..manifest import AdapterManifest

Vector = npt.NDArray[np.float32]

MAX_MAGNITUDE: Final = 2.0**40
"""No adapter weight comes near it, and a sum of squares of 10^11 such values is finite in float32.
A larger value is refused by both ends; lossy decoding may exceed it by its rounding."""

MIN_EXPONENT: Final = -100
"""With it the smallest decoded value of any codec (2^-125) is still a normal float32, so a process
that flushes subnormals to zero decodes what every other process decodes."""
MAX_EXPONENT: Final = 41

CHUNK: Final = 1 << 18  # values worked on at a time: a float32 temporary of 1 MiB stays in cache

_HEADER = struct.Struct("<4sBBhQ")
_MAGIC = b"FWC1"
HEADER_BYTES: Final = _HEADER.size


class Codec(Protocol):
    """One way to write a float32 vector as bytes."""

    @property
    def name(self) -> str:
        """The name that `get_codec` knows and `Payload.codec` carries."""

    @property
    def lossless(self) -> bool:
        """Whether decoding gives back every bit."""

    def max_size(self, numel: int) -> int:
        """The most bytes an encoding of `numel` values can have."""

    def encode(self, vector: Vector, manifest: AdapterManifest) -> bytes:
        """Write `vector` (float32 [n], n = manifest.numel); equal vectors give equal bytes.

        Raises:
            ProtocolError: wrong length or type, a value that is not finite or is larger than
                MAX_MAGNITUDE.
        """

    def decode(self, data: bytes, numel: int) -> Vector:
        """Read `numel` values back as a new float32 [numel].

        Takes at most a small multiple of 4 * numel bytes of memory, whatever `data` is.

        Raises:
            ProtocolError: `data` is not an encoding of `numel` values by this codec.
        """


def checked(vector: Vector, manifest: AdapterManifest) -> float:
    """Check a vector that is to be encoded; return its largest magnitude."""
    if vector.dtype != np.float32 or vector.shape != (manifest.numel,):
        raise ProtocolError(
            f"cannot encode {vector.dtype} {vector.shape}: the adapter is float32 "
            f"({manifest.numel},)"
        )
    return check_values(vector, MAX_MAGNITUDE)


def check_values(vector: Vector, limit: float = 2 * MAX_MAGNITUDE) -> float:
    """Return the largest magnitude of `vector`.

    Raises:
        ProtocolError: it is not finite, or above `limit`.
    """
    # Compared as integers: Python's max() of floats would lose a NaN.
    bits = max(
        int(magnitudes(vector[start : start + CHUNK]).max())
        for start in range(0, vector.size, CHUNK)
    )
    largest = float(np.uint32(bits).view(np.float32))
    if not largest <= limit:
        raise ProtocolError(
            "a value of the adapter is not finite"
            if not math.isfinite(largest)
            else f"a value of the adapter has magnitude {largest:.3g}, more than {limit:.3g}"
        )
    return largest


def magnitudes(vector: Vector) -> npt.NDArray[np.uint32]:
    """|x| as the bits of its float32: they are ordered as the numbers are, infinity and NaN last.

    An integer maximum over rows of 64 is twice as fast as numpy's floating one, and keeps a NaN.
    """
    bits: npt.NDArray[np.uint32] = vector.view(np.uint32) & np.uint32(0x7FFFFFFF)
    return bits


def exponent_for(largest: float, ceiling: int) -> int:
    """The common exponent that brings `largest` to [2^(ceiling - 1), 2^ceiling)."""
    if largest == 0.0:
        return 0
    return max(MIN_EXPONENT, math.frexp(largest)[1] - ceiling)


def pack_header(tag: int, numel: int, *, options: int = 0, exponent: int = 0) -> bytes:
    """The 16 bytes before every body."""
    return _HEADER.pack(_MAGIC, tag, options, exponent, numel)


def unpack_header(data: bytes, tag: int, numel: int, *, size: int, options: int = 0) -> float:
    """Check the header and the total size; return 2^exponent."""
    if len(data) != size:
        raise ProtocolError(f"{len(data)} encoded bytes, expected {size} for {numel} values")
    magic, got_tag, got_options, exponent, got_numel = _HEADER.unpack_from(data)
    if magic != _MAGIC or got_tag != tag or got_options != options:
        raise ProtocolError("the encoded bytes were not written by the codec they name")
    if got_numel != numel:
        raise ProtocolError(f"an encoding of {got_numel} values, expected {numel}")
    if not MIN_EXPONENT <= exponent <= MAX_EXPONENT:
        raise ProtocolError(f"the common exponent {exponent} is out of range")
    return math.ldexp(1.0, exponent)
