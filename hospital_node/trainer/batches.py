"""Token sequences side by side, as a model eats them.

Here a batch is padded on the right to its longest sequence, after sorting by length. The rest of
the trainer sees only `Batch`, so packing can take this module's place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .tokens import TokenSet


@dataclass(frozen=True)
class Batch:
    """Sequences of one forward pass."""

    ids: torch.Tensor  # int64 (sequences, longest)
    mask: torch.Tensor | None  # int64, the same shape; None when nothing is padded
    predictors: torch.Tensor  # bool, the same shape: the next token is part of a response
    targets: torch.Tensor  # int64 (targets,): those next tokens, in the order of the mask
    tokens: int  # real tokens, padding not counted


def collate(
    tokens: TokenSet, rows: Sequence[int] | NDArray[np.int64], device: torch.device
) -> Batch:
    """The sequences `rows` of `tokens` as one padded batch."""
    lengths = [tokens.length(int(row)) for row in rows]
    longest = max(lengths)
    # The padding's value is never looked at: it is masked out and has no target.
    ids = np.zeros((len(lengths), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    predictors = np.zeros(ids.shape, dtype=bool)
    targets = []
    for place, row in enumerate(rows):
        sequence, prompt = tokens[int(row)]
        ids[place, : len(sequence)] = sequence
        mask[place, : len(sequence)] = 1
        predictors[place, prompt - 1 : len(sequence) - 1] = True
        targets.append(sequence[prompt:])
    padded = min(lengths) < longest
    flat = np.concatenate(targets).astype(np.int64)
    return Batch(
        torch.from_numpy(ids).to(device),
        torch.from_numpy(mask).to(device) if padded else None,
        torch.from_numpy(predictors).to(device),
        torch.from_numpy(flat).to(device),
        sum(lengths),
    )


def by_length(tokens: TokenSet, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """`rows` from the shortest sequence to the longest; equal lengths keep their order."""
    lengths = np.array([tokens.length(int(row)) for row in rows])
    return rows[np.argsort(lengths, kind="stable")]


def token_batches(
    tokens: TokenSet, rows: NDArray[np.int64], budget: int
) -> Iterator[NDArray[np.int64]]:
    """Split length-sorted `rows`: a padded batch has at most `budget` tokens, or one row."""
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or (end + 1 - start) * tokens.length(int(rows[end])) > budget:
            yield rows[start:end]
            start = end
