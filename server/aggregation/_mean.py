"""The weighted mean of updates, one at a time."""

import numpy as np

from protocol.errors import ProtocolError
from protocol.manifest import AdapterManifest

from ._types import CHUNK, Intake, Sum, Update, Vector


class Mean:
    """A running weighted sum in float64: memory is 8 bytes a parameter, however many sites.

    FedAvg (McMahan et al., arXiv 1602.05629, algorithm 1):

        mean = Σ p_k Δ_k,   p_k = w_k / Σ w

    With `by_step`, FedNova (Wang et al., arXiv 2007.07481, section 4): sites that did different
    numbers τ_k of local steps otherwise pull the optimum towards those that did more.

        mean = (Σ p_k τ_k) (Σ p_k Δ_k / τ_k)
    """

    def __init__(self, manifest: AdapterManifest, *, by_step: bool = False) -> None:
        self.intake = Intake(manifest)
        self._sum: Sum = np.zeros(manifest.numel, np.float64)
        self._by_step = by_step
        self._weighted_steps = 0.0

    def add(self, update: Update) -> None:
        """See `Aggregator`; the update is not held."""
        delta = self.intake.check(update)
        factor = 1.0
        if self._by_step:
            if update.steps < 1:
                raise ProtocolError(f"{update.site}: {update.steps} steps; at least 1 is needed")
            factor = 1.0 / update.steps
            self._weighted_steps += update.weight * update.steps
        accumulate(self._sum, delta, update.weight * factor)
        self.intake.took(update)

    def combine(self) -> tuple[Vector, dict[str, float]]:
        """The mean (float32 [n]) and nothing to say about it. Call it once."""
        self.intake.require()
        scale = 1.0 / self.intake.weight
        if self._by_step:
            scale *= self._weighted_steps / self.intake.weight
        return scaled(self._sum, scale), {}


def accumulate(total: Sum, x: Vector, weight: float) -> None:
    """total += weight * x, in float64, without a temporary of the vector's length."""
    scratch = np.empty(min(CHUNK, x.size), np.float64)
    for start in range(0, x.size, CHUNK):
        part = x[start : start + CHUNK]
        product = np.multiply(part, weight, out=scratch[: part.size])
        total[start : start + CHUNK] += product


def scaled(total: Sum, scale: float) -> Vector:
    """scale * total, rounded to float32."""
    result = np.empty(total.size, np.float32)
    np.multiply(total, scale, out=result, casting="same_kind")
    return result
