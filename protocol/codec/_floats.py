"""The values themselves, at 32 or 16 bits."""

import numpy as np

from ..manifest import AdapterManifest
from ._base import (
    CHUNK,
    HEADER_BYTES,
    Vector,
    check_values,
    checked,
    exponent_for,
    pack_header,
    unpack_header,
)


class Float32:
    """Little-endian float32, every bit kept."""

    name = "fp32"
    lossless = True

    def max_size(self, numel: int) -> int:
        """See `Codec`."""
        return HEADER_BYTES + 4 * numel

    def encode(self, vector: Vector, manifest: AdapterManifest) -> bytes:
        """See `Codec`."""
        checked(vector, manifest)
        return b"".join((pack_header(1, vector.size), np.ascontiguousarray(vector, "<f4").data))

    def decode(self, data: bytes, numel: int) -> Vector:
        """See `Codec`."""
        unpack_header(data, 1, numel, size=self.max_size(numel))
        vector = np.frombuffer(data, "<f4", offset=HEADER_BYTES).astype(np.float32)
        check_values(vector)
        return vector


class Float16:
    """IEEE 754 half precision under one common power of two (11 bits of precision)."""

    name = "fp16"
    lossless = False

    def max_size(self, numel: int) -> int:
        """See `Codec`."""
        return HEADER_BYTES + 2 * numel

    def encode(self, vector: Vector, manifest: AdapterManifest) -> bytes:
        """See `Codec`."""
        exponent = exponent_for(checked(vector, manifest), 15)
        half = np.empty(vector.size, "<f2")
        inverse = np.float32(2.0**-exponent)
        for start in range(0, vector.size, CHUNK):
            half[start : start + CHUNK] = vector[start : start + CHUNK] * inverse
        return b"".join((pack_header(2, vector.size, exponent=exponent), half.data))

    def decode(self, data: bytes, numel: int) -> Vector:
        """See `Codec`."""
        scale = unpack_header(data, 2, numel, size=self.max_size(numel))
        vector = np.frombuffer(data, "<f2", offset=HEADER_BYTES).astype(np.float32)
        with np.errstate(invalid="ignore"):  # a signalling NaN; check_values refuses it
            vector *= np.float32(scale)
        check_values(vector)
        return vector


class BFloat16:
    """The upper half of a float32, rounded to nearest even (8 bits of precision).

    Integer operations only: numpy has no bfloat16, and Flower's ArrayRecord refuses it.
    """

    name = "bf16"
    lossless = False

    def max_size(self, numel: int) -> int:
        """See `Codec`."""
        return HEADER_BYTES + 2 * numel

    def encode(self, vector: Vector, manifest: AdapterManifest) -> bytes:
        """See `Codec`."""
        checked(vector, manifest)
        upper = np.empty(vector.size, "<u2")
        bits = np.ascontiguousarray(vector).view(np.uint32)
        for start in range(0, vector.size, CHUNK):
            part = bits[start : start + CHUNK]
            odd = (part >> np.uint32(16)) & np.uint32(1)
            upper[start : start + CHUNK] = (part + np.uint32(0x7FFF) + odd) >> np.uint32(16)
        return b"".join((pack_header(3, vector.size), upper.data))

    def decode(self, data: bytes, numel: int) -> Vector:
        """See `Codec`."""
        unpack_header(data, 3, numel, size=self.max_size(numel))
        bits = np.frombuffer(data, "<u2", offset=HEADER_BYTES).astype(np.uint32)
        bits <<= np.uint32(16)
        vector = bits.view(np.float32)
        check_values(vector)
        return vector
