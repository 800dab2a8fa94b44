"""The weighted mean of updates, one at a time."""

import numpy as np

from protocol.manifest import AdapterManifest

from ._types import Intake, Update, Vector

_CHUNK = 1 << 18


class Mean:
    """A running weighted sum in float64: memory is 8 bytes a parameter, whatever came.

    FedAvg (McMahan et al., arXiv 1602.05629, algorithm 1): mean = Σ w_k Δ_k / Σ w_k.
    """

    def __init__(self, manifest: AdapterManifest) -> None:
        self.intake = Intake(manifest)
        self._sum = np.zeros(manifest.numel, np.float64)

    def add(self, update: Update) -> None:
        """See `Aggregator`; the update is not held."""
        self.intake.check(update)
        accumulate(self._sum, update.delta, update.weight)
        self.intake.took(update)

    def mean(self) -> Vector:
        """float32 [n]."""
        self.intake.require()
        mean = np.empty(self._sum.size, np.float32)
        np.divide(self._sum, self.intake.weight, out=mean, casting="same_kind")
        return mean


def accumulate(total: np.ndarray[tuple[int], np.dtype[np.float64]], x: Vector, w: float) -> None:
    """total += w * x, in float64, without a temporary of the vector's length."""
    scratch = np.empty(min(_CHUNK, x.size), np.float64)
    for start in range(0, x.size, _CHUNK):
        part = x[start : start + _CHUNK]
        product = scratch[: part.size]
        np.multiply(part, w, out=product)
        total[start : start + _CHUNK] += product
