"""From a codec's name to the codec."""

from functools import lru_cache

from ..errors import SettingsError
from ._base import Codec
from ._floats import BFloat16, Float16, Float32

_FIXED: dict[str, type[Codec]] = {"fp32": Float32, "fp16": Float16, "bf16": BFloat16}


def known_codecs() -> tuple[str, ...]:
    """Every name that `get_codec` takes."""
    return tuple(_FIXED)


@lru_cache(maxsize=64)
def get_codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        SettingsError: there is none; the message names those there are.
    """
    if name in _FIXED:
        return _FIXED[name]()
    raise SettingsError(f"unknown codec {name!r}: known codecs are {', '.join(known_codecs())}")
