"""FlexLoRA: the best rank-r factors of the sites' exact weighted product.

Averaging A and B apart gives (Σ p B)(Σ p A), which is not Σ p B A. FlexLoRA (Bai et al., arXiv
2402.11505) takes the product itself and truncates its singular value decomposition to rank r; sites
of different ranks need nothing more. Here the decomposition goes through the stacked factors (see
`_lora.decompose`) and never forms the product.

Memory: the factors of up to `stack_sites` sites. When more come, the stack is compressed to rank
(stack_sites / 2) r and the rest of it is dropped, so memory stops growing with the number of sites;
what was dropped is in `info["compression_error"]`, and up to `stack_sites` sites nothing is.
"""

import math

import numpy as np

from protocol.codec import factor_of
from protocol.manifest import AdapterManifest

from ._lora import Pair, decompose, find_pairs, row_norm
from ._mean import accumulate, scaled
from ._types import Aggregate, Intake, Sum, Update, Vector, l2_norm, sent_adapter


class _Stack:
    """Σ w_k B_k A_k of one pair, as factors side by side."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self._b: list[Vector] = []
        self._a: list[Vector] = []
        self.dropped = 0.0  # sum of the Frobenius norms of what compressing left out

    def add(self, adapter: Vector, weight: float) -> None:
        b, a = self.pair.factors(adapter)
        self._b.append(b * np.float32(weight))
        self._a.append(a.copy())

    def compress(self, rank: int) -> None:
        b, a, lost = decompose(np.hstack(self._b), np.vstack(self._a)).top(rank)
        self._b, self._a = [b], [a]
        self.dropped += math.sqrt(lost)

    def truncate(self, reference: Vector, adapter: Vector) -> tuple[float, float]:
        """Write the best factors of the pair's rank to `adapter`; return energy and loss.

        A's rows keep the length they had, and B carries the singular values: A then stays as far
        from zero as PEFT draws it, so a direction with a small singular value can still learn
        (with the singular values split evenly both its gradients would vanish). Of the two signs
        of a direction the one nearer to the old A is taken, so that the change is small.
        """
        product = decompose(np.hstack(self._b), np.vstack(self._a))
        b, a, lost = product.top(self.pair.rank)
        _, old_a = self.pair.factors(reference)
        new_b, new_a = self.pair.factors(adapter)
        length = np.float32(row_norm(old_a))
        turned = np.where(np.einsum("ij,ij->i", a, old_a[: len(a)]) < 0, -length, length)
        new_a[:] = old_a  # where the product has fewer directions than r, B's columns are zero
        new_b[:] = 0.0
        new_a[: len(a)] = a * turned[:, None]
        new_b[:, : len(a)] = b / turned
        return product.energy, lost


class FlexLora:
    """One round's aggregation; tensors that are no LoRA factors are averaged."""

    def __init__(self, manifest: AdapterManifest, reference: Vector, *, stack_sites: int) -> None:
        self._intake = Intake(manifest)
        self._reference = reference
        self._stacks = [_Stack(pair) for pair in find_pairs(manifest)]
        self._rest: list[tuple[slice, Sum]] = [
            (where, np.zeros(tensor.numel, np.float64))
            for tensor, where in manifest.slices()
            if factor_of(tensor) is None
        ]
        self._stack_sites = stack_sites
        self._stacked = 0

    def add(self, update: Update) -> None:
        """See `Aggregator`; the site's factors are held, the rest of the update is not."""
        delta = self._intake.check(update)
        adapter = sent_adapter(self._reference, self._intake.manifest, update) + delta
        if self._stacked == self._stack_sites:
            for stack in self._stacks:
                stack.compress(self._stack_sites // 2 * stack.pair.rank)
            self._stacked = self._stack_sites // 2
        for stack in self._stacks:
            stack.add(adapter, update.weight)
        for where, total in self._rest:
            accumulate(total, delta[where], update.weight)
        self._stacked += 1
        self._intake.took(update)

    def finish(self) -> Aggregate:
        """See `Aggregator`.

        `info["captured_energy"]` is the share of the product's squared norm that rank r keeps,
        over all pairs, and `captured_energy_min` that of the worst pair; where it is low, the
        sites' changes have little in common and a higher rank is worth its bytes.
        `compression_error` bounds the relative error of the product itself (0 up to stack_sites).
        """
        self._intake.require()
        total = self._intake.weight
        adapter = self._reference.copy()
        for where, rest in self._rest:
            adapter[where] += scaled(rest, 1.0 / total)
        energy = lost = dropped = 0.0
        shares = []
        for stack in self._stacks:
            pair_energy, pair_lost = stack.truncate(self._reference, adapter)
            new_b, _ = stack.pair.factors(adapter)
            new_b /= np.float32(total)
            energy, lost, dropped = energy + pair_energy, lost + pair_lost, dropped + stack.dropped
            shares.append(1.0 - pair_lost / pair_energy if pair_energy else 1.0)
        info = self._intake.info() | {
            "update_norm": l2_norm(adapter, self._reference),
            "captured_energy": 1.0 - lost / energy if energy else 1.0,
            "captured_energy_min": min(shares),
            "compression_error": dropped / math.sqrt(energy) if energy else 0.0,
        }
        return Aggregate(adapter, info)
