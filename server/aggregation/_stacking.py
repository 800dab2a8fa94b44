"""Exact aggregation by changing the base weights: FedEx-LoRA and FLoRA.

Both hold every site's factors until the round ends, and their down-link grows with the number of
sites; both need a base that can be added to, so not a quantized one.

    fedex   factors Ā = Σ p A_k, B̄ = Σ p B_k;   merge Σ p B_k A_k - B̄ Ā     (arXiv 2410.09432)
    flora   factors new (A drawn, B zero);      merge Σ p B_k A_k           (arXiv 2409.05976)
"""

import math

import numpy as np

from protocol.manifest import AdapterManifest

from ._lora import Pair, find_pairs
from ._mean import accumulate, scaled
from ._types import Aggregate, Intake, Merge, Sum, Update, Vector, l2_norm, sent_adapter


class _Stacked:
    def __init__(self, manifest: AdapterManifest, reference: Vector) -> None:
        self._intake = Intake(manifest)
        self._reference = reference
        self._pairs = find_pairs(manifest)
        self._sum: Sum = np.zeros(manifest.numel, np.float64)
        self._adapters: list[tuple[float, Vector]] = []

    def add(self, update: Update) -> None:
        """See `Aggregator`; the update is held until the round ends."""
        delta = self._intake.check(update)
        adapter = sent_adapter(self._reference, self._intake.manifest, update) + delta
        accumulate(self._sum, delta, update.weight)
        self._adapters.append((update.weight, adapter))
        self._intake.took(update)

    def _mean(self) -> Vector:
        self._intake.require()
        return self._reference + scaled(self._sum, 1.0 / self._intake.weight)

    def _product(self, pair: Pair) -> tuple[list[Vector], list[Vector]]:
        """The blocks of Σ p_k B_k A_k: p_k B_k side by side, A_k one above the other."""
        blocks = [(weight, pair.factors(adapter)) for weight, adapter in self._adapters]
        total = self._intake.weight
        return [b * np.float32(w / total) for w, (b, _) in blocks], [a for _, (_, a) in blocks]

    def _aggregate(self, adapter: Vector, merge: dict[str, Merge]) -> Aggregate:
        squares = (float(np.sum((m.b.T @ m.b) * (m.a @ m.a.T))) for m in merge.values())
        info = self._intake.info() | {
            "update_norm": l2_norm(adapter, self._reference),
            "merge_norm": math.sqrt(max(0.0, sum(squares))),
        }
        return Aggregate(adapter, info, merge=merge)


class FedEx(_Stacked):
    """Averaged factors, and what averaging them apart got wrong as a change of the base."""

    def finish(self) -> Aggregate:
        """See `Aggregator`; `merge` has rank (K + 1) r, `info["merge_norm"]` its L2 norm."""
        adapter = self._mean()
        merge = {}
        for pair in self._pairs:
            b_blocks, a_blocks = self._product(pair)
            b_mean, a_mean = pair.factors(adapter)
            merge[pair.module] = Merge(
                np.hstack([*b_blocks, -b_mean]), np.vstack([*a_blocks, a_mean])
            )
        return self._aggregate(adapter, merge)


class Flora(_Stacked):
    """The whole product into the base, and a new adapter: A as PEFT draws it, B zero.

    The draw is by study seed and round, so a resumed round gives the same adapter. (A public
    implementation's own FedAvg baseline adds only the first site, by a misspelt variable; figures
    that compare FLoRA with it say nothing.)
    """

    def __init__(
        self, manifest: AdapterManifest, reference: Vector, *, seed: int, round_number: int
    ) -> None:
        super().__init__(manifest, reference)
        self._random = np.random.default_rng([seed, round_number])

    def finish(self) -> Aggregate:
        """See `Aggregator`; `merge` has rank K r, `info["merge_norm"]` its L2 norm."""
        adapter = self._mean()
        merge = {}
        for pair in self._pairs:
            b_blocks, a_blocks = self._product(pair)
            merge[pair.module] = Merge(np.hstack(b_blocks), np.vstack(a_blocks))
            b, a = pair.factors(adapter)
            b[:] = 0.0
            bound = 1.0 / math.sqrt(a.shape[1])
            a[:] = self._random.uniform(-bound, bound, a.shape)
        return self._aggregate(adapter, merge)
