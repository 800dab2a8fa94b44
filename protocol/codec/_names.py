"""From a codec's name to the codec."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from ..errors import SettingsError
from ._base import Codec
from ._blocks import Int2, Int4, Int8, NormalFloat4
from ._floats import BFloat16, Float16, Float32
from ._topk import MAX_FRACTION, MIN_FRACTION, TopK
from ._zstd import Zstd

_FIXED: Final[dict[str, Callable[[], Codec]]] = {
    "fp32": Float32,
    "fp16": Float16,
    "bf16": BFloat16,
    "int8": Int8,
    "int4": Int4,
    "int2": Int2,
    "nf4": NormalFloat4,
    "int8-s8": lambda: Int8(wide=False),
    "int4-s8": lambda: Int4(wide=False),
    "int2-s8": lambda: Int2(wide=False),
    "nf4-s8": lambda: NormalFloat4(wide=False),
}
_WIDTHS: Final = {"fp32": 4, "fp16": 2, "bf16": 2}
_TOPK: Final = re.compile(r"topk-(0\.\d{0,5}[1-9])")


def known_codecs() -> tuple[str, ...]:
    """Every fixed name; each may be followed by `+zstd`, and `topk-0.1` stands for any fraction."""
    return (*_FIXED, "topk-0.1")


@lru_cache(maxsize=64)
def get_codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        SettingsError: there is none; the message names those there are.
    """
    plain = name.removesuffix("+zstd")
    if plain in _FIXED:
        codec = _FIXED[plain]()
    elif match := _TOPK.fullmatch(plain):
        fraction = float(match[1])
        if not MIN_FRACTION <= fraction <= MAX_FRACTION:
            raise SettingsError(
                f"codec {name!r}: the fraction must be from {MIN_FRACTION} to {MAX_FRACTION}"
            )
        codec = TopK(fraction)
    else:
        raise SettingsError(
            f"unknown codec {name!r}: known codecs are {', '.join(known_codecs())} (any fraction "
            f"from {MIN_FRACTION} to {MAX_FRACTION}), each with or without '+zstd'"
        )
    return codec if plain == name else Zstd(codec, _WIDTHS.get(plain, 1))
