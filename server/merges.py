"""What FedEx-LoRA and FLoRA have added to the base weights so far, round by round.

Hospitals add each round's change to their own copy of the base, so a round sends only what is new;
a hospital that missed rounds, or has loaded its base anew, is sent all that it lacks, stacked into
one product b @ a. What is kept grows with rounds times hospitals: that is the methods' own price.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from protocol.codec import factor_of, module_of, with_merges
from protocol.manifest import AdapterManifest, TensorSpec
from protocol.messages import Merges

from .aggregation import Merge, Vector


@dataclass(frozen=True)
class RoundMerge:
    """One round's change: float32, for each LoRA factor of the layout b or a in its place."""

    rank: int
    vector: Vector


@dataclass(frozen=True)
class MergeHistory:
    """All changes since the study began; `base` is the base's hash, empty where none is changed."""

    manifest: AdapterManifest
    base: str = ""
    rounds: tuple[RoundMerge, ...] = ()

    @property
    def states(self) -> tuple[str, ...]:
        """What the base is called before the first change and after each."""
        names = [self.base]
        for change in self.rounds:
            digest = hashlib.sha256(np.ascontiguousarray(change.vector, "<f4").data).hexdigest()
            names.append(hashlib.sha256((names[-1] + digest).encode()).hexdigest())
        return tuple(names)

    def add(self, merge: Mapping[str, Merge]) -> "MergeHistory":
        """With one more round; as it is where `merge` is empty."""
        if not merge:
            return self
        rank = next(iter(merge.values())).a.shape[0]
        parts = []
        for tensor in self.manifest.tensors:
            factor = factor_of(tensor)
            if factor is not None:
                one = merge[module_of(tensor)]
                parts.append((one.a if factor == "A" else one.b).reshape(-1))
        change = RoundMerge(rank, np.concatenate(parts).astype(np.float32))
        return MergeHistory(self.manifest, self.base, (*self.rounds, change))

    def since(self, state: str | None) -> tuple[Merges, Vector]:
        """What a site lacks whose base is `state`; None or an unknown one: everything.

        Returns:
            The description, and float32 values laid out as `with_merges` puts them behind an
            adapter.
        """
        states = self.states
        done = states.index(state) if state in states else 0
        missing = self.rounds[done:]
        rank = sum(change.rank for change in missing)
        described = Merges(rank=rank, before=states[done], after=states[-1])
        return described, self._stack(missing)

    def stacked(self) -> dict[str, Merge]:
        """Everything, by module."""
        rank, vector = sum(change.rank for change in self.rounds), self._stack(self.rounds)
        found: dict[str, dict[str, Vector]] = {}
        place = 0
        for tensor in self._extra(rank):
            size = tensor.numel
            module, _, factor = tensor.name.removeprefix("~merge.").rpartition(".")
            values = vector[place : place + size].reshape(tensor.shape)
            found.setdefault(module, {})[factor] = values
            place += size
        return {module: Merge(both["b"], both["a"]) for module, both in found.items()}

    def _stack(self, changes: tuple[RoundMerge, ...]) -> Vector:
        if not changes:
            return np.zeros(0, np.float32)
        columns: list[list[Vector]] = []
        for change in changes:
            place, row = 0, []
            for tensor in self._extra(change.rank):
                row.append(change.vector[place : place + tensor.numel].reshape(tensor.shape))
                place += tensor.numel
            columns.append(row)
        stacked = []
        for tensor, *blocks in zip(self._extra(1), *columns, strict=True):
            axis = 0 if tensor.name.endswith(".a") else 1
            stacked.append(np.concatenate(blocks, axis=axis).reshape(-1))
        return np.concatenate(stacked)

    def _extra(self, rank: int) -> tuple[TensorSpec, ...]:
        return with_merges(self.manifest, rank).tensors[len(self.manifest.tensors) :]
