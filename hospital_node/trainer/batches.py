"""Token sequences side by side, as a model eats them.

Two layouts of the same thing, and the rest of the trainer sees only `Batch`:

    packed   sequences end to end in one row, no padding; responses to the same prompt share it
    padded   one sequence a row, padded on the right, for architectures that cannot be packed

With `virtual` > 0 each sequence (or shared prompt) begins with as many places whose embeddings are
not looked up but trained; their token ids mean nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from .attention import Layout, Segment, lay_out
from .tokens import TokenSet


@dataclass(frozen=True)
class Batch:
    """Sequences of one forward pass."""

    ids: torch.Tensor  # int64 (sequences, longest), or (1, tokens) when packed
    mask: torch.Tensor | None  # int64, the same shape; None when nothing is padded
    predictors: torch.Tensor  # int64 (targets,): flat places whose next token is in a response
    targets: torch.Tensor  # int64 (targets,): those next tokens
    counts: NDArray[np.int64]  # (sequences,): targets of each sequence, in order
    tokens: int  # real tokens of the sequences, padding not counted
    positions: torch.Tensor | None = None  # int64 (1, tokens) when packed
    layout: Layout | None = None  # of a packed row
    virtual: torch.Tensor | None = None  # int64 (segments * virtual,): flat places of those


def collate(
    tokens: TokenSet,
    rows: Sequence[int] | NDArray[np.int64],
    device: torch.device,
    virtual: int = 0,
) -> Batch:
    """The sequences `rows` of `tokens` as one padded batch."""
    lengths = [virtual + tokens.length(int(row)) for row in rows]
    longest = max(lengths)
    # The padding's value is never looked at: it is masked out and has no target.
    ids = np.zeros((len(lengths), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    predictors, targets = [], []
    for place, row in enumerate(rows):
        sequence, prompt = tokens[int(row)]
        end = virtual + len(sequence)
        ids[place, virtual:end] = sequence
        mask[place, :end] = 1
        predictors.append(place * longest + np.arange(virtual + prompt - 1, end - 1))
        targets.append(sequence[prompt:])
    places = np.arange(len(lengths))[:, None] * longest + np.arange(virtual)
    padded = min(lengths) < longest
    return Batch(
        torch.from_numpy(ids).to(device),
        torch.from_numpy(mask).to(device) if padded else None,
        _flat(predictors, device),
        _flat(targets, device),
        np.array([len(part) for part in targets], dtype=np.int64),
        sum(lengths) - virtual * len(lengths),
        virtual=torch.from_numpy(places.reshape(-1)).to(device) if virtual else None,
    )


def pack(
    tokens: TokenSet,
    groups: Sequence[Sequence[int] | NDArray[np.int64]],
    device: torch.device,
    virtual: int = 0,
) -> Batch:
    """The sequences of `groups` in one row; those of a group have the same prompt, laid once.

    A sequence's last token is left out: it is predicted and predicts nothing.
    """
    ids: list[NDArray[Any]] = []
    positions: list[NDArray[Any]] = []
    predictors: list[NDArray[Any]] = []
    targets: list[NDArray[Any]] = []
    segments: list[Segment] = []
    places: list[NDArray[Any]] = []
    start = real = 0
    for group in groups:
        first, prompt = tokens[int(group[0])]
        trunk = virtual + prompt
        places.append(np.arange(start, start + virtual))
        ids += [np.zeros(virtual), first[:prompt]]
        positions.append(np.arange(trunk))
        branches = []
        place = start + trunk
        for row in group:
            sequence, _ = tokens[int(row)]
            inner = len(sequence) - prompt - 1
            ids.append(sequence[prompt:-1])
            positions.append(np.arange(trunk, trunk + inner))
            predictors.append(np.array([start + trunk - 1]))
            predictors.append(np.arange(place, place + inner))
            targets.append(sequence[prompt:])
            branches.append(inner)
            place += inner
            real += len(sequence)
        segments.append(Segment(start, trunk, tuple(branches)))
        start = place
    return Batch(
        _flat(ids, device).view(1, -1),
        None,
        _flat(predictors, device),
        _flat(targets, device),
        np.array([len(part) for part in targets], dtype=np.int64),
        real,
        _flat(positions, device).view(1, -1),
        lay_out(segments, device),
        _flat(places, device) if virtual else None,
    )


def share_prompts(tokens: TokenSet, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """`rows` in groups of neighbours with the same prompt, token by token."""
    groups: list[list[int]] = []
    for row in rows.tolist():
        sequence, prompt = tokens[row]
        if groups:
            other, length = tokens[groups[-1][0]]
            if length == prompt and np.array_equal(other[:length], sequence[:prompt]):
                groups[-1].append(row)
                continue
        groups.append([row])
    return [np.array(group, dtype=np.int64) for group in groups]


def packed_size(tokens: TokenSet, group: NDArray[np.int64], virtual: int = 0) -> int:
    """Places that a group takes in a packed row."""
    prompt = int(tokens.prompts[group[0]])
    return virtual + prompt + sum(tokens.length(int(row)) - prompt - 1 for row in group)


class Sized(Protocol):
    """Rows whose lengths are known: token sequences, or pairs of them."""

    def length(self, row: int, /) -> int:
        """Tokens of a row."""


def by_length(tokens: Sized, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """`rows` from the shortest sequence to the longest; equal lengths keep their order."""
    lengths = np.array([tokens.length(int(row)) for row in rows])
    return rows[np.argsort(lengths, kind="stable")]


def token_batches(
    tokens: TokenSet, rows: NDArray[np.int64], budget: int, virtual: int = 0
) -> Iterator[NDArray[np.int64]]:
    """Split length-sorted `rows`: a padded batch has at most `budget` places, or one row."""
    start = 0
    for end in range(1, len(rows) + 1):
        full = end == len(rows)
        if full or (end + 1 - start) * (virtual + tokens.length(int(rows[end]))) > budget:
            yield rows[start:end]
            start = end


def packed_batches(
    tokens: TokenSet, groups: Sequence[NDArray[np.int64]], budget: int, virtual: int = 0
) -> Iterator[list[NDArray[np.int64]]]:
    """Split `groups`: a packed row has at most `budget` places, or one group."""
    batch: list[NDArray[np.int64]] = []
    size = 0
    for group in groups:
        more = packed_size(tokens, group, virtual)
        if batch and size + more > budget:
            yield batch
            batch, size = [], 0
        batch.append(group)
        size += more
    if batch:
        yield batch


def _flat(parts: Sequence[NDArray[Any]], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)
