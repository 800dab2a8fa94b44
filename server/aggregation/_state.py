"""What a server algorithm remembers between rounds, as bytes for the checkpoint."""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from protocol.errors import ProtocolError

_ALGORITHM = "algorithm"


@dataclass(frozen=True)
class ServerState:
    """Named float32 [n] vectors (momentum, second moments, control variate) of one algorithm.

    Empty before the first round, and always for the algorithms that remember nothing.
    """

    algorithm: str = ""
    vectors: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def vector(self, name: str, numel: int, *, fill: float = 0.0) -> npt.NDArray[np.float32]:
        """The vector of that name, or one filled with `fill` where there is none yet.

        Raises:
            ProtocolError: it is there with another length.
        """
        held = self.vectors.get(name)
        if held is None:
            return np.full(numel, fill, np.float32)
        if held.shape != (numel,):
            raise ProtocolError(f"server state {name!r} has {held.shape}, expected ({numel},)")
        return held

    def of(self, algorithm: str) -> "ServerState":
        """This state for `algorithm`.

        Raises:
            ProtocolError: it belongs to another algorithm.
        """
        if self.algorithm and self.algorithm != algorithm:
            raise ProtocolError(
                f"the checkpoint's server state is of {self.algorithm}, the study's strategy is "
                f"{algorithm}"
            )
        return self

    def to_bytes(self) -> bytes:
        """An uncompressed npz archive; `from_bytes` reads it back."""
        buffer = io.BytesIO()
        name = np.frombuffer(self.algorithm.encode(), np.uint8)
        np.savez(buffer, allow_pickle=False, **{_ALGORITHM: name}, **dict(self.vectors))
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "ServerState":
        """Read what `to_bytes` wrote.

        Raises:
            ProtocolError: not such an archive, or a vector that is not finite float32.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                vectors = {name: archive[name] for name in archive.files}
            algorithm = vectors.pop(_ALGORITHM).tobytes().decode("ascii")
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ProtocolError("the server state is not readable") from error
        for name, vector in vectors.items():
            if vector.dtype != np.float32 or vector.ndim != 1 or not np.isfinite(vector).all():
                raise ProtocolError(f"server state {name!r} is not a finite float32 vector")
        return cls(algorithm, vectors)
