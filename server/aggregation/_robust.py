"""Rules that withstand some sites sending anything at all.

They compare the updates with each other, so all of a round's updates are held: 4 bytes a parameter
and site. Weights are not looked at: a hostile site would claim the largest.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.manifest import AdapterManifest

from ._types import CHUNK, AggregationError, Intake, Sum, Update, Vector

_WORK: Final = 1 << 20  # values of all sites together that are sorted at a time


class _Collected:
    def __init__(self, manifest: AdapterManifest) -> None:
        self.intake = Intake(manifest)
        self._deltas: dict[str, Vector] = {}

    def add(self, update: Update) -> None:
        """See `Aggregator`; the update is held until the round ends."""
        self._deltas[update.site] = self.intake.check(update)
        self.intake.took(update)

    def _ordered(self) -> list[Vector]:
        """By site name, so that the order of arrival decides nothing."""
        return [self._deltas[site] for site in sorted(self._deltas)]


class TrimmedMean(_Collected):
    """Of each coordinate the mean without the ⌈βK⌉ largest and smallest values.

    Yin et al., arXiv 1803.01498, definition 2; with `fraction` None the coordinate median,
    definition 1.
    """

    def __init__(self, manifest: AdapterManifest, fraction: float | None) -> None:
        super().__init__(manifest)
        self._fraction = fraction

    def combine(self) -> tuple[Vector, dict[str, float]]:
        """The result (float32 [n]) and how many values were cut from each end."""
        self.intake.require()
        deltas = self._ordered()
        count = len(deltas)
        cut = (count - 1) // 2 if self._fraction is None else math.ceil(self._fraction * count)
        if count <= 2 * cut:
            raise AggregationError(
                f"{count} update(s) cannot be aggregated: a trimmed mean that cuts {cut} from each "
                f"end needs {2 * cut + 1}"
            )
        result = np.empty(deltas[0].size, np.float32)
        width = max(1, _WORK // count)
        for start in range(0, result.size, width):
            rows = sort_rows(np.stack([delta[start : start + width] for delta in deltas]))
            result[start : start + width] = rows[cut : count - cut].mean(axis=0, dtype=np.float64)
        return result, {"trimmed": float(cut)}


class Krum(_Collected):
    """The update, or the mean of the m updates, closest to its K - f - 2 nearest others.

    Blanchard et al., NeurIPS 2017, section 4 (Krum), and section 5's m-Krum; it needs K >= 2f + 3.
    `keep` is m; 0 stands for K - f.
    """

    def __init__(self, manifest: AdapterManifest, *, byzantine: int, keep: int) -> None:
        super().__init__(manifest)
        self._byzantine = byzantine
        self._keep = keep

    def combine(self) -> tuple[Vector, dict[str, float]]:
        """The result (float32 [n]), and how many updates it is the mean of."""
        needed = 2 * self._byzantine + 3
        self.intake.require(
            needed, f"Krum needs {needed} to withstand {self._byzantine} hostile site(s)"
        )
        deltas = self._ordered()
        count = len(deltas)
        distances = squared_distances(deltas)
        np.fill_diagonal(distances, np.inf)
        nearest = np.sort(distances, axis=1)[:, : count - self._byzantine - 2]
        keep = min(self._keep or count - self._byzantine, count)
        chosen = np.argsort(nearest.sum(axis=1), kind="stable")[:keep]
        total: Sum = np.zeros(deltas[0].size, np.float64)
        for index in chosen:
            total += deltas[index]
        return (total / keep).astype(np.float32), {"kept": float(keep)}


def squared_distances(vectors: list[Vector]) -> Sum:
    """Squared L2 distances of each pair, float64 [K, K], from the Gram matrix.

    The mean is taken off first: updates that nearly agree would lose their difference otherwise.
    """
    count, size = len(vectors), vectors[0].size
    gram: Sum = np.zeros((count, count))
    width = max(1, CHUNK // count)
    for start in range(0, size, width):
        part = np.stack([vector[start : start + width] for vector in vectors]).astype(np.float64)
        part -= part.mean(axis=0)
        gram += part @ part.T
    norms = np.diagonal(gram)
    return np.maximum(norms[:, None] + norms[None, :] - 2 * gram, 0.0)


def sort_rows(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Sort each column of float32 [K, m] in place, by whole rows.

    Batcher's odd-even merge sort (Knuth, TAOCP volume 3, algorithm 5.2.2M): about K (log K)^2 / 4
    minima and maxima of rows, where sorting m short columns pays a call for each.
    """
    count = len(rows)
    top = 1 << max(0, (count - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            for i in range(count - d):
                if i & p == r:
                    low, high = rows[i], rows[i + d]
                    smaller = np.minimum(low, high)
                    np.maximum(low, high, out=high)
                    low[:] = smaller
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return rows
