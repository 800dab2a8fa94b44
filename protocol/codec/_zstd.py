"""Zstandard (RFC 8878) around another codec.

A frame says how much it opens to. That is checked against what the inner codec may need before a
byte is opened, so a bomb costs nothing. Floating-point bodies are laid out by byte first (all first
bytes, then all second bytes, ...): signs and exponents repeat, mantissas do not.
"""

from typing import Final

import numpy as np
import zstandard

from ..errors import ProtocolError
from ..manifest import AdapterManifest
from ._base import HEADER_BYTES, Codec, Vector

_LEVEL: Final = 1  # there are no repeats to find: levels 3 and 6 are no smaller, and slower
_MAX_WINDOW: Final = 1 << 23


class Zstd:
    """`inner`, compressed; `width` is the bytes of one item of the inner body."""

    def __init__(self, inner: Codec, width: int) -> None:
        self._inner = inner
        self._width = width
        self.name = f"{inner.name}+zstd"
        self.lossless = inner.lossless

    def max_size(self, numel: int) -> int:
        """See `Codec`; incompressible bytes grow by a 256th and a little (zstd.h)."""
        size = self._inner.max_size(numel)
        return size + (size >> 8) + 1024

    def encode(self, vector: Vector, manifest: AdapterManifest) -> bytes:
        """See `Codec`."""
        plain = self._inner.encode(vector, manifest)
        return zstandard.ZstdCompressor(level=_LEVEL).compress(self._by_byte(plain))

    def decode(self, data: bytes, numel: int) -> Vector:
        """See `Codec`."""
        if len(data) > self.max_size(numel):
            raise ProtocolError(f"{len(data)} compressed bytes are too many for {numel} values")
        size = self._inner.max_size(numel)
        try:
            opens_to = zstandard.get_frame_parameters(data).content_size
            if opens_to > size:  # unknown is 2^64 - 1
                raise ProtocolError(
                    f"a frame that opens to {opens_to} bytes, at most {size} is due"
                )
            plain = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompress(
                data, max_output_size=size, read_across_frames=False, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise ProtocolError("the payload is not a Zstandard frame") from error
        return self._inner.decode(self._by_item(plain), numel)

    def _by_byte(self, plain: bytes) -> bytes:
        if self._width == 1:
            return plain
        body = np.frombuffer(plain, np.uint8, offset=HEADER_BYTES).reshape(-1, self._width)
        return b"".join((plain[:HEADER_BYTES], np.ascontiguousarray(body.T).data))

    def _by_item(self, plain: bytes) -> bytes:
        if self._width == 1:
            return plain
        if len(plain) < HEADER_BYTES or (len(plain) - HEADER_BYTES) % self._width:
            raise ProtocolError(f"{len(plain)} decompressed bytes are not whole values")
        body = np.frombuffer(plain, np.uint8, offset=HEADER_BYTES).reshape(self._width, -1)
        return b"".join((plain[:HEADER_BYTES], np.ascontiguousarray(body.T).data))
