"""The safetensors format, which is simple enough not to need a library in the server's image.

    u64: length of the header | header: JSON | the tensors' values, in order     little-endian

https://github.com/huggingface/safetensors (format.md). Only float32 and bytes are written here; a
test reads the files back with the safetensors library.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocol.errors import FedwardError

_TYPES: Final[dict[str, np.dtype[Any]]] = {"F32": np.dtype("<f4"), "U8": np.dtype("u1")}
_ALIGN: Final = 8  # the library aligns the data to 8 bytes by padding the header with spaces


class SafetensorsError(FedwardError):
    """Bytes that are not a safetensors file of ours."""


def dump(
    tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The bytes of a safetensors file with `tensors` (float32 or uint8) in this order."""
    names = {kind: name for name, kind in _TYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    blobs: list[bytes] = []
    start = 0
    for name, tensor in tensors.items():
        dtype = tensor.dtype.newbyteorder("<")
        blob = np.ascontiguousarray(tensor, dtype).tobytes()
        header[name] = {
            "dtype": names[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + len(blob)],
        }
        blobs.append(blob)
        start += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    return b"".join([struct.pack("<Q", len(text)), text, *blobs])


def load(data: bytes) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Read what `dump` wrote: tensors and metadata.

    Raises:
        SafetensorsError: truncated or not such a file.
    """
    try:
        (size,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + size])
        metadata = header.pop("__metadata__", {})
        tensors = {}
        for name, spec in header.items():
            start, end = spec["data_offsets"]
            blob = data[8 + size + start : 8 + size + end]
            tensors[name] = np.frombuffer(blob, _TYPES[spec["dtype"]]).reshape(spec["shape"]).copy()
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SafetensorsError("not a readable safetensors file") from error
    return tensors, metadata
