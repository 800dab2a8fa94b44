"""Block quantization: 64 values share a scale, each keeps 8, 4 or 2 bits.

    int8  q in -127..127          value = q * scale
    int4  q in -7..7              value = q * scale
    int2  q in -3, -1, 1, 3       value = q * scale       (no zero: four levels are too few for one)
    nf4   q in 0..15              value = level[q] * scale

Body: one scale for each block (see `_scales`), then the codes block by block. A byte holds codes
that lie 32 (4 bits) or 16 (2 bits) apart in the block, so that packing is a shift of whole rows.
Blocks run over the flat vector, across tensors; the last is filled up with zeros.

NF4's levels are those of QLoRA (arXiv 2305.14314, appendix E). On changes of an adapter 2 to 4 bits
cost no accuracy in small federations and need no error feedback, unlike sparsification.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from ..errors import ProtocolError
from ..manifest import AdapterManifest
from ._base import (
    CHUNK,
    HEADER_BYTES,
    Vector,
    check_values,
    checked,
    exponent_for,
    magnitudes,
    pack_header,
    unpack_header,
)
from ._scales import BLOCK, blocks_of, pack_scales, unpack_scales

Codes = npt.NDArray[np.uint8]

_ROWS: Final = CHUNK // BLOCK  # blocks worked on at a time

_NF4: Final = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)

# The RMS of a block over this is the scale of int2: levels at ±0.498 and ±1.494 RMS are the best
# four evenly spaced ones for a normal distribution (Max, IRE Trans. Inf. Theory 6(1), 1960).
_INT2_STEP: Final = np.float32(0.4978)


class Blocks:
    """A codec of this family; `wide` scales have 16 bits, the others 8."""

    lossless = False
    tag: int
    bits: int
    base: str

    def __init__(self, *, wide: bool = True) -> None:
        self._wide = wide
        self.name = self.base if wide else f"{self.base}-s8"

    def max_size(self, numel: int) -> int:
        """See `Codec`."""
        scale = 2 if self._wide else 1
        return HEADER_BYTES + blocks_of(numel) * (scale + BLOCK * self.bits // 8)

    def encode(self, vector: Vector, manifest: AdapterManifest) -> bytes:
        """See `Codec`."""
        exponent = exponent_for(checked(vector, manifest), 15)
        inverse_common = np.float32(2.0**-exponent)
        blocks = blocks_of(vector.size)
        scales = np.empty(blocks, "<u2" if self._wide else "u1")
        packed = np.empty((blocks, BLOCK * self.bits // 8), np.uint8)
        for start in range(0, blocks, _ROWS):
            part = _rows(vector, start) * inverse_common
            rows = slice(start, start + len(part))
            scale_codes = pack_scales(self._scale(part), wide=self._wide)
            scales[rows] = scale_codes
            scale = unpack_scales(scale_codes, wide=self._wide)
            with np.errstate(divide="ignore"):
                part *= np.where(scale > 0, np.float32(1) / scale, np.float32(0))[:, None]
            packed[rows] = _pack(self._quantize(part), self.bits)
        options = 0 if self._wide else 1
        header = pack_header(self.tag, vector.size, options=options, exponent=exponent)
        return b"".join((header, scales.data, packed.data))

    def decode(self, data: bytes, numel: int) -> Vector:
        """See `Codec`."""
        options = 0 if self._wide else 1
        common = np.float32(
            unpack_header(data, self.tag, numel, size=self.max_size(numel), options=options)
        )
        blocks = blocks_of(numel)
        scales = np.frombuffer(data, "<u2" if self._wide else "u1", blocks, HEADER_BYTES)
        packed = np.frombuffer(data, np.uint8, offset=HEADER_BYTES + scales.nbytes)
        packed = packed.reshape(blocks, -1)
        vector = np.empty((blocks, BLOCK), np.float32)
        for start in range(0, blocks, _ROWS):
            rows = slice(start, min(start + _ROWS, blocks))
            scale = unpack_scales(scales[rows].astype(np.uint16), wide=self._wide) * common
            out = vector[rows]
            self._dequantize(_unpack(packed[rows], self.bits), out)
            out *= scale[:, None]
        flat = vector.reshape(-1)
        self._check_filling(packed[-1:], numel)
        check_values(flat)
        return flat[:numel]

    def _check_filling(self, last: Codes, numel: int) -> None:
        """The places after the last value carry nothing."""
        empty = blocks_of(numel) * BLOCK - numel
        if not empty:
            return
        zero = self._quantize(np.zeros((1, 1), np.float32))[0, 0]
        if (_unpack(last, self.bits)[0, BLOCK - empty :] != zero).any():
            raise ProtocolError("the filling of the last block is not zero")

    def _scale(self, rows: Vector) -> Vector:
        """The scale each row wants: float32 [rows, 64] to float32 [rows], none negative."""
        raise NotImplementedError

    def _quantize(self, scaled: Vector) -> Codes:
        """Codes of values already divided by their scale; may overwrite them."""
        raise NotImplementedError

    def _dequantize(self, codes: Codes, out: Vector) -> None:
        """Write the values of codes, before the scale, to `out`; refuse codes never written."""
        raise NotImplementedError


class Int8(Blocks):
    """8 bits: 3.88 times smaller than float32, error 0.6 % of a normal vector's norm."""

    tag, bits, base = 4, 8, "int8"

    def _scale(self, rows: Vector) -> Vector:
        return _largest(rows) / np.float32(127)

    def _quantize(self, scaled: Vector) -> Codes:
        return np.rint(scaled, out=scaled).astype(np.int8).view(np.uint8)

    def _dequantize(self, codes: Codes, out: Vector) -> None:
        signed = codes.view(np.int8)
        if int(signed.min()) == -128:
            raise ProtocolError("a code is out of range")
        np.copyto(out, signed)


class Int4(Blocks):
    """4 bits: 7.53 times smaller, error 10.8 %."""

    tag, bits, base = 5, 4, "int4"

    def _scale(self, rows: Vector) -> Vector:
        return _largest(rows) / np.float32(7)

    def _quantize(self, scaled: Vector) -> Codes:
        scaled += np.float32(8)
        return np.rint(scaled, out=scaled).astype(np.uint8)

    def _dequantize(self, codes: Codes, out: Vector) -> None:
        if not int(codes.min()):
            raise ProtocolError("a code is out of range")
        np.copyto(out, codes)
        out -= np.float32(8)


class Int2(Blocks):
    """2 bits: 14.2 times smaller, error 34 %."""

    tag, bits, base = 6, 2, "int2"

    def _scale(self, rows: Vector) -> Vector:
        scale = np.sqrt(np.einsum("ij,ij->i", rows, rows) / np.float32(BLOCK)) * _INT2_STEP
        # One step of Lloyd: with the levels chosen, the scale that fits them best. A few steps of
        # AdamW move most weights by about the same distance, which is far from normal; without
        # this the error on equal magnitudes is 50 %, with it nothing.
        size = np.abs(rows)
        outer = (size >= (scale + scale)[:, None]).astype(np.float32)
        fitted: Vector = np.einsum("ij->i", size) + np.float32(2) * np.einsum(
            "ij,ij->i", size, outer
        )
        fitted /= np.float32(BLOCK) + np.float32(8) * np.einsum("ij->i", outer)
        return fitted

    def _quantize(self, scaled: Vector) -> Codes:
        codes = (scaled >= np.float32(-2)).view(np.uint8)
        codes += scaled >= 0
        codes += scaled >= np.float32(2)
        return codes

    def _dequantize(self, codes: Codes, out: Vector) -> None:
        np.copyto(out, codes)
        out *= np.float32(2)
        out -= np.float32(3)


class NormalFloat4(Blocks):
    """4 bits on the quantiles of a normal distribution: 7.53 times smaller, error 9.2 %."""

    tag, bits, base = 7, 4, "nf4"

    def _scale(self, rows: Vector) -> Vector:
        return _largest(rows)

    def _quantize(self, scaled: Vector) -> Codes:
        codes = np.zeros(scaled.shape, np.uint8)
        for middle in (_NF4[:-1] + _NF4[1:]) / np.float32(2):
            codes += scaled > middle
        return codes

    def _dequantize(self, codes: Codes, out: Vector) -> None:
        np.take(_NF4, codes, out=out)


def _rows(vector: Vector, start: int) -> Vector:
    """Blocks `start` and on as float32 [rows, 64], filled up with zeros at the end."""
    part = vector[start * BLOCK : (start + _ROWS) * BLOCK]
    if part.size % BLOCK:
        part = np.concatenate([part, np.zeros(-part.size % BLOCK, np.float32)])
    return part.reshape(-1, BLOCK)


def _largest(rows: Vector) -> Vector:
    """The largest magnitude of each row, float32 [rows]."""
    largest: Vector = magnitudes(rows).max(axis=1).view(np.float32)
    return largest


def _pack(codes: Codes, bits: int) -> Codes:
    """uint8 [rows, 64] of codes below 2^bits to uint8 [rows, 8 * bits]."""
    if bits == 8:
        return codes
    width = BLOCK * bits // 8
    packed = codes[:, :width].copy()
    for place in range(1, 8 // bits):
        packed |= codes[:, place * width : (place + 1) * width] << np.uint8(place * bits)
    return packed


def _unpack(packed: Codes, bits: int) -> Codes:
    """The inverse of `_pack`."""
    if bits == 8:
        return packed
    width = packed.shape[1]
    codes = np.empty((len(packed), BLOCK), np.uint8)
    mask = np.uint8((1 << bits) - 1)
    for place in range(8 // bits):
        part = codes[:, place * width : (place + 1) * width]
        np.right_shift(packed, np.uint8(place * bits), out=part)
        part &= mask
    return codes
