"""Direct preference optimization (arXiv 2305.18290): which of two answers to a prompt is better.

    loss of a pair = -log sigmoid(beta * ((c - c_base) - (r - r_base)))

with the summed log-likelihoods, in nats, of the chosen and the rejected answer under the adapter
and under the base. The base is the resident one with its adapter switched off, so there is no
second model. What it says never changes: it is computed once a row and kept, in memory and in a
cache file of mode 0600 on the site's own disk.

Where the architecture can be packed, the two answers share the pass over their prompt.
"""

import hashlib
import io
import logging
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import logsigmoid

from protocol.files import write_atomic
from protocol.messages import Evaluation
from protocol.states import Reason

from .batches import Batch, collate, pack
from .data import Rows
from .errors import Refusal
from .model import Resident
from .templates import Template
from .tokens import TokenSet, tokenize_pairs

log = logging.getLogger("fedward.trainer")

# Two answers that the adapter moved by less, in nats, are not told apart: that is rounding.
_UNDECIDED: Final = 1e-4
_KEPT_FILES: Final = 8  # cache files that are kept, the newest
# Places in a forward pass without a gradient, as in `evaluation`.
_CPU_TOKENS: Final = 4096
_GPU_TOKENS: Final = 32768


@dataclass(frozen=True)
class Pairs:
    """Rows with a chosen and a rejected answer."""

    sequences: TokenSet  # chosen and rejected in turn, both after the same prompt
    base: NDArray[np.float64]  # (rows, 2): log-likelihoods under the base; NaN: not known yet
    cache: Path | None = None  # where they are kept

    def __len__(self) -> int:
        return len(self.base)

    @property
    def rows(self) -> int:
        """Number of pairs."""
        return len(self)

    def length(self, row: int) -> int:
        """Tokens of both answers, each with the prompt."""
        return self.sequences.length(2 * row) + self.sequences.length(2 * row + 1)


def paired_rows(
    tokenizer: Any, template: Template, rows: Rows, max_length: int, cache: Path
) -> tuple[Pairs, Pairs]:
    """The rows with a rejected answer, to train on and held out.

    Raises:
        Refusal: there are none on one side.
    """
    made = []
    for side, given in (("train", rows.train), ("heldout", rows.heldout)):
        found = [row for row in given if row.rejected]
        if not found:
            raise Refusal(
                Reason.DATA_EMPTY,
                f"training.objective = 'dpo', and none of the {len(given)} {side} rows has a "
                "rejected answer: data.columns.chosen and data.columns.rejected name the columns",
            )
        if len(found) < len(given):
            log.warning("%d of %d %s rows have no rejected answer and are left out",
                        len(given) - len(found), len(given), side)  # fmt: skip
        sequences = tokenize_pairs(tokenizer, template, found, max_length)
        if sequences.truncated:
            log.warning("%d answers were cut to %d tokens", sequences.truncated, max_length)
        made.append(make_pairs(sequences, cache.with_name(f"base-{side}-{cache.name}")))
    return made[0], made[1]


def make_pairs(sequences: TokenSet, cache: Path | None) -> Pairs:
    """Pairs over `sequences`, with what `cache` knows of the base."""
    base = np.full((len(sequences) // 2, 2), np.nan)
    if cache is not None:
        try:
            with np.load(cache, allow_pickle=False) as kept:
                if (
                    str(kept["sequences"]) == _digest(sequences)
                    and kept["base"].shape == base.shape
                ):
                    base = kept["base"].astype(np.float64)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            log.warning("%s: a damaged cache file; the base is asked again", cache)
    return Pairs(sequences, base, cache)


def ask_base(
    resident: Resident, pairs: Pairs, rows: NDArray[np.int64], check: Callable[[], None]
) -> None:
    """Make sure that `pairs.base` knows `rows`; `check()` is called after each forward pass."""
    wanted = np.unique(rows)
    missing = wanted[np.isnan(pairs.base[wanted]).any(axis=1)]
    if not len(missing):
        return
    resident.model.eval()
    with resident.without_adapter(), torch.inference_mode():
        for chosen in _batches(resident, pairs, missing):
            found = log_likelihoods(resident, batch_of(resident, pairs, chosen))
            pairs.base[chosen] = found.double().cpu().numpy()
            check()
    _keep(pairs)


def batch_of(resident: Resident, pairs: Pairs, rows: NDArray[np.int64]) -> Batch:
    """Both answers of each of `rows`, in turn."""
    tokens = pairs.sequences
    groups = [[2 * int(row), 2 * int(row) + 1] for row in rows]
    longest = max(tokens.length(place) for group in groups for place in group)
    if resident.packs(longest):
        return pack(tokens, groups, resident.device, resident.virtual)
    flat = [place for group in groups for place in group]
    return collate(tokens, flat, resident.device, resident.virtual)


def log_likelihoods(resident: Resident, batch: Batch) -> torch.Tensor:
    """Summed log-likelihood (nats) of the chosen and the rejected answers: float32 (rows, 2)."""
    losses = resident.response_losses(batch)
    counts = torch.from_numpy(batch.counts).to(losses.device)
    owner = torch.repeat_interleave(torch.arange(len(counts), device=losses.device), counts)
    sums = losses.new_zeros(len(counts)).index_add(0, owner, -losses)
    return sums.view(-1, 2)


def margins(
    resident: Resident, pairs: Pairs, rows: NDArray[np.int64], batch: Batch
) -> torch.Tensor:
    """How much more the adapter lifted the chosen answer than the rejected one: nats, (rows,)."""
    base = torch.from_numpy(pairs.base[rows]).to(batch.ids.device, torch.float32)
    gained = log_likelihoods(resident, batch) - base
    return gained[:, 0] - gained[:, 1]


def pair_loss(
    resident: Resident, pairs: Pairs, rows: NDArray[np.int64], beta: float
) -> tuple[torch.Tensor, int]:
    """The summed loss (nats) of `rows`, with a gradient, and their real tokens."""
    batch = batch_of(resident, pairs, rows)
    return -logsigmoid(beta * margins(resident, pairs, rows, batch)).sum(), batch.tokens


def evaluate_pairs(
    resident: Resident,
    pairs: Pairs,
    rows: NDArray[np.int64],
    beta: float,
    on_batch: Callable[[int, int], None],
) -> Evaluation:
    """Mean loss a pair, and how many pairs the adapter has right, as `Evaluation`'s choices.

    A pair is right when its chosen answer gained more on the base than its rejected one. The base
    itself can prefer nothing over itself: of what is undecided, half counts as right, so that a
    study begins at ln 2 and one half.
    """
    ask_base(resident, pairs, rows, lambda: on_batch(0, len(rows)))
    resident.model.eval()
    total, right, undecided, done = 0.0, 0, 0, 0
    with torch.inference_mode():
        for chosen in _batches(resident, pairs, rows):
            batch = batch_of(resident, pairs, chosen)
            found = margins(resident, pairs, chosen, batch).double()
            total += float(-logsigmoid(beta * found).sum())
            close = found.abs() <= _UNDECIDED
            undecided += int(close.sum())
            right += int((found[~close] > 0).sum())
            done += len(chosen)
            on_batch(done, len(rows))
    return Evaluation(
        examples=len(rows),
        loss=total / max(1, len(rows)),
        choice_examples=len(rows),
        choice_correct=right + undecided // 2,
    )


def take(pairs: Pairs, rows: NDArray[np.int64]) -> Pairs:
    """`rows` alone, in this order."""
    places = np.stack([2 * rows, 2 * rows + 1], axis=1).reshape(-1)
    return Pairs(pairs.sequences.take(places), pairs.base[rows])


def _batches(
    resident: Resident, pairs: Pairs, rows: NDArray[np.int64]
) -> Iterator[NDArray[np.int64]]:
    """Each of `rows` once, in batches of like length."""
    budget = _GPU_TOKENS if resident.device.type == "cuda" else _CPU_TOKENS
    lengths = np.array([pairs.length(int(row)) + 2 * resident.virtual for row in rows])
    ordered = rows[np.argsort(lengths, kind="stable")]
    sizes = np.sort(lengths, kind="stable")
    start = 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or (end + 1 - start) * sizes[end] > budget:
            yield ordered[start:end]
            start = end


def _keep(pairs: Pairs) -> None:
    """Write what the base said; a failure is only a warning."""
    if pairs.cache is None:
        return
    buffer = io.BytesIO()
    np.savez(buffer, base=pairs.base, sequences=np.array(_digest(pairs.sequences)))
    try:
        pairs.cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(pairs.cache, buffer.getvalue(), mode=0o600)
        kept = sorted(pairs.cache.parent.glob("base-*.npz"), key=lambda file: file.stat().st_mtime)
        for old in kept[:-_KEPT_FILES]:
            old.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: cannot write the cache: %s", pairs.cache, error.strerror or error)


def _digest(tokens: TokenSet) -> str:
    whole = hashlib.sha256()
    for array in (tokens.ids, tokens.starts, tokens.prompts):
        whole.update(array.tobytes())
    return whole.hexdigest()
