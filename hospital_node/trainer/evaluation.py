"""Numbers over a site's held-out rows for the adapter that is in the model now.

    loss      mean negative log-likelihood of a response token, the end token included, nats
    choice    a multiple-choice row is right when its right option has the highest summed
              log-likelihood per byte of the option's text (LM Evaluation Harness' `acc_norm`:
              a plain sum favours short options, a mean per token depends on the tokenizer)
    answer    a free row is right when, given the true answer so far, the likeliest next token is
              the true one at every place, the end token included: what greedy decoding would give,
              without generating

Each costs one forward pass over the sequences; the options of a row share the pass over its prompt
where the architecture can be packed (`attention`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from protocol.messages import Evaluation

from .batches import (
    Batch,
    by_length,
    collate,
    pack,
    packed_batches,
    packed_size,
    share_prompts,
    token_batches,
)
from .model import Resident
from .tokens import HeldoutSet

# Tokens in a forward pass, padding too. On a CPU larger batches gain nothing and leave the cache.
_CPU_TOKENS = 4096
_GPU_TOKENS = 32768


@dataclass(frozen=True)
class _Scores:
    """One entry a sequence."""

    log_likelihood: NDArray[np.float64]
    tokens: NDArray[np.int64]
    exact: NDArray[np.bool_]


def evaluate(
    resident: Resident,
    heldout: HeldoutSet,
    rows: NDArray[np.int64],
    on_batch: Callable[[int, int], None],
) -> Evaluation:
    """Evaluate on the held-out `rows`; `on_batch(done, all)` is called after each forward pass."""
    wanted = np.zeros(heldout.rows, dtype=bool)
    wanted[rows] = True
    sequences = np.flatnonzero(wanted[heldout.row]).astype(np.int64)
    scores = _score(resident, heldout, sequences, on_batch)
    reference = sequences[heldout.reference[sequences]]
    response_tokens = int(scores.tokens[reference].sum())
    loss = -float(scores.log_likelihood[reference].sum()) / max(1, response_tokens)
    chosen = _choices(heldout, sequences, scores)
    right = heldout.answer[rows]
    free = rows[right < 0]
    free_right = sum(
        bool(scores.exact[place]) for place in reference if heldout.answer[heldout.row[place]] < 0
    )
    return Evaluation(
        examples=len(rows),
        loss=loss,
        choice_examples=len(chosen),
        choice_correct=sum(heldout.answer[row] == option for row, option in chosen.items()),
        answer_examples=len(free),
        answer_correct=free_right,
    )


def _choices(heldout: HeldoutSet, sequences: NDArray[np.int64], scores: _Scores) -> dict[int, int]:
    """The option the model prefers, by row; the earlier one where two are equal."""
    best: dict[int, tuple[float, int]] = {}
    for place in sequences:
        option = int(heldout.option[place])
        if option < 0:
            continue
        row = int(heldout.row[place])
        score = float(scores.log_likelihood[place]) / int(heldout.weight[place])
        if row not in best or score > best[row][0]:
            best[row] = (score, option)
    return {row: option for row, (_, option) in best.items()}


def _score(
    resident: Resident,
    heldout: HeldoutSet,
    sequences: NDArray[np.int64],
    on_batch: Callable[[int, int], None],
) -> _Scores:
    count = len(heldout.sequences)
    scores = _Scores(np.zeros(count), np.zeros(count, dtype=np.int64), np.zeros(count, dtype=bool))
    resident.model.eval()
    done = 0
    with torch.inference_mode(), resident.autocast():
        for places, batch in _batches(resident, heldout, sequences):
            losses, hits = _token_scores(resident, batch)
            starts = np.cumsum(batch.counts) - batch.counts
            scores.log_likelihood[places] = -np.add.reduceat(losses, starts)
            scores.exact[places] = np.logical_and.reduceat(hits, starts)
            scores.tokens[places] = batch.counts
            done += len(places)
            on_batch(done, len(sequences))
    return scores


def _batches(
    resident: Resident, heldout: HeldoutSet, places: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Every sequence of `places` once, in batches of like length."""
    tokens = heldout.sequences
    budget = _GPU_TOKENS if resident.device.type == "cuda" else _CPU_TOKENS
    virtual = resident.virtual
    if resident.packs(max((tokens.length(int(place)) for place in places), default=0)):
        groups = share_prompts(tokens, places)
        groups.sort(key=lambda group: packed_size(tokens, group))
        for batch in packed_batches(tokens, groups, budget, virtual):
            yield np.concatenate(batch), pack(tokens, batch, resident.device, virtual)
        return
    for rows in token_batches(tokens, by_length(tokens, places), budget, virtual):
        yield rows, collate(tokens, rows, resident.device, virtual)


def _token_scores(
    resident: Resident, batch: Batch
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Loss (nats) of each response token, and whether it was the likeliest."""
    losses = torch.empty(len(batch.targets), dtype=torch.float32, device=resident.device)
    hits = torch.empty(len(batch.targets), dtype=torch.bool, device=resident.device)

    def visit(logits: torch.Tensor, first: int) -> None:
        place = slice(first, first + len(logits))
        losses[place] = cross_entropy(logits, batch.targets[place], reduction="none")
        hits[place] = logits.argmax(dim=-1) == batch.targets[place]

    resident.response_blocks(batch, visit)
    return losses.cpu().numpy().astype(np.float64), hits.cpu().numpy()
