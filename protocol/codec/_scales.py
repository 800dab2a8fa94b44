"""One scale for each block of 64 values, in 16 or 8 bits.

A scale is stored as a float16, or as the upper byte of one without its sign: five bits of exponent
and three of mantissa. Both are rounded up, so that no value of the block falls outside the range
the scale opens, and both are divided by the vector's common power of two, so that they use
float16's range wherever the adapter's magnitude lies.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from ..errors import ProtocolError
from ._base import Vector

BLOCK: Final = 64
_INFINITY: Final = 0x7C00  # float16: this and above are infinities and NaNs


def blocks_of(numel: int) -> int:
    """Blocks that hold `numel` values; the last may be part empty."""
    return -(-numel // BLOCK)


def pack_scales(wanted: Vector, *, wide: bool) -> npt.NDArray[np.uint16]:
    """The codes (float16 bits, or the upper byte of them) of scales not below `wanted`."""
    half = wanted.astype(np.float16)
    codes = half.view(np.uint16)
    codes += half.astype(np.float32) < wanted
    if not wide:
        codes = (codes + np.uint16(0x7F)) >> np.uint16(7)
    return codes


def unpack_scales(codes: npt.NDArray[np.uint16], *, wide: bool) -> Vector:
    """The float32 scales that `codes` stand for, before the common power of two.

    Raises:
        ProtocolError: a scale that is negative, infinite or not a number.
    """
    bits = codes if wide else codes << np.uint16(7)
    if bits.size and int(bits.max()) >= _INFINITY:
        raise ProtocolError("a block's scale is negative or not finite")
    return bits.view(np.float16).astype(np.float32)
