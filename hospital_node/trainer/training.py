"""One site's local work of one round: AdamW on the adapter, the base frozen.

The optimizer is fresh in every round (its moments belong to an adapter that averaging has
replaced) and the learning rate constant inside one. The loss is the mean over the response tokens
of the batch, so a long answer counts more than a short one, as in a plain Hugging Face loop.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from protocol.states import Reason

from .adapter import Adapter, Vector
from .batches import Batch, Sized, by_length
from .errors import Refusal
from .model import Resident
from .preference import Pairs, ask_base, pair_loss
from .team import Team
from .tokens import TokenSet

log = logging.getLogger("fedward.trainer")

# Tokens in a forward pass below which a GPU idles: each pass also turns the whole 4-bit base into
# 16 bits once (16 GB written for 8 billion parameters), which few tokens do not repay.
_BUSY_TOKENS: Final = 1024


@dataclass(frozen=True)
class Plan:
    """What to do in one round."""

    batch_size: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    seed: int  # of dropout
    factors: frozenset[str] = frozenset({"A", "B"})  # LoRA factors that train
    eight_bit: bool = False  # AdamW's moments in 8 bits (arXiv 2110.02861), on a GPU
    seconds: float = math.inf  # after which no further step begins; there is always one
    correction: Vector | None = None  # SCAFFOLD's c - c_k (float32 [n]), added to every gradient
    proximal_mu: float = 0.0  # FedProx (arXiv 1812.06127): mu/2 |w - w_received|^2 is added
    beta: float = 0.1  # of DPO, where the examples are pairs


@dataclass
class Done:
    """What was done: one loss (nats per response token, or per pair) a step."""

    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    examples: int = 0
    gradient: Vector | None = None  # float32 [n]: mean of the steps' raw gradients (SCAFFOLD)


def train(
    resident: Resident,
    adapter: Adapter,
    examples: TokenSet | Pairs,
    rows: NDArray[np.int64],
    plan: Plan,
    on_step: Callable[[float, int], None],
    team: Team | None = None,
) -> Done:
    """Train the adapter that is in `resident` now, on `rows` in order, `plan.batch_size` a step.

    Pairs are trained on by DPO (`preference`), sequences by their responses' cross-entropy. With a
    `team`, several processes call this with the same arguments and do the steps together.

    `on_step(loss, tokens)` is called after each step; what it raises ends the training there.

    Raises:
        Refusal: the loss is not finite.
        torch.OutOfMemoryError: one example alone does not fit.
    """
    if isinstance(examples, Pairs):
        ask_base(resident, examples, rows, lambda: None)
    parameters = adapter.train_only(plan.factors)
    anchor = [p.detach().clone() for p in parameters] if plan.proximal_mu else []
    control = _Control(adapter, plan.correction) if plan.correction is not None else None
    half = resident.dtype is torch.float16
    optimizer = _optimizer(parameters, plan, resident.device, fused=not half)
    # float16 gradients underflow without it; for the other types it does nothing.
    scaler = torch.amp.GradScaler(resident.device.type, enabled=half)
    torch.manual_seed(plan.seed + (team.rank if team is not None else 0))
    done = Done()
    began = time.monotonic()
    resident.model.train()
    try:
        for start in range(0, len(rows), plan.batch_size):
            late = bool(done.losses) and time.monotonic() - began >= plan.seconds
            if team is not None:
                late = team.agree(stop=late)
            if late:
                log.info("stopped after %d steps, %g s", len(done.losses), plan.seconds)
                break
            chosen = by_length(examples, rows[start : start + plan.batch_size])
            optimizer.zero_grad(set_to_none=True)
            mine = chosen if team is None else team.share(chosen)
            weight = _weight(examples, chosen)
            loss, count = _gradients(resident, examples, mine, weight, plan, scaler, optimizer)
            if team is not None:
                loss, count = team.add_up(parameters, loss, count)
            if not math.isfinite(loss):
                raise Refusal(
                    Reason.NOT_FINITE, f"the loss is {loss} at step {len(done.losses) + 1}"
                )
            scaler.unscale_(optimizer)
            if control is not None:
                control.correct()
            for parameter, before in zip(parameters, anchor, strict=False):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - before, alpha=plan.proximal_mu)
            torch.nn.utils.clip_grad_norm_(parameters, plan.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            done.losses.append(loss)
            done.tokens += count
            done.examples += len(chosen)
            on_step(loss, count)
        if control is not None:
            done.gradient = control.mean(len(done.losses))
    finally:
        resident.model.eval()
        optimizer.zero_grad(set_to_none=True)
        adapter.train_only(frozenset({"A", "B"}))
    return done


class _Control:
    """SCAFFOLD's half in the trainer (arXiv 1910.06378): every gradient g becomes g - c_k + c.

    It is done before clipping and before the optimizer, so the correction passes through AdamW's
    moments as the gradient does. The mean of the raw g is the site's next control variate.
    """

    def __init__(self, adapter: Adapter, correction: Vector) -> None:
        self._adapter = adapter
        self._corrections = [
            torch.from_numpy(np.ascontiguousarray(correction[place]))
            .view(parameter.shape)
            .to(parameter.device)
            for parameter, (_, place) in zip(
                adapter.parameters, adapter.manifest.slices(), strict=True
            )
        ]
        self._sums = [torch.zeros_like(one) for one in self._corrections]

    def correct(self) -> None:
        """Note the raw gradients, and correct them."""
        for parameter, total, change in zip(
            self._adapter.parameters, self._sums, self._corrections, strict=True
        ):
            if parameter.grad is not None:
                total.add_(parameter.grad)
                parameter.grad.add_(change)

    def mean(self, steps: int) -> Vector:
        """The mean raw gradient: float32, (manifest.numel,); zero where nothing trained."""
        flat = [total.reshape(-1).cpu() for total in self._sums]
        mean: Vector = (torch.cat(flat) / max(1, steps)).numpy()
        return mean


def _optimizer(
    parameters: list[torch.nn.Parameter], plan: Plan, device: torch.device, *, fused: bool
) -> torch.optim.Optimizer:
    rate, decay = plan.learning_rate, plan.weight_decay
    if plan.eight_bit and device.type == "cuda":
        from bitsandbytes.optim import AdamW8bit

        made: torch.optim.Optimizer = AdamW8bit(parameters, lr=rate, weight_decay=decay)
        return made
    # One kernel for all of the many small tensors. Its own unscaling would meet the scaler's.
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=fused)


def response_loss(resident: Resident, batch: Batch) -> torch.Tensor:
    """Summed cross-entropy of the response tokens (nats), a float32 scalar."""
    return resident.response_loss(batch)


def _summed_loss(
    resident: Resident, examples: TokenSet | Pairs, rows: NDArray[np.int64], plan: Plan
) -> tuple[torch.Tensor, int]:
    """The loss of `rows`, not yet divided by `_weight`, and their real tokens."""
    if isinstance(examples, Pairs):
        return pair_loss(resident, examples, rows, plan.beta)
    batch = resident.collate(examples, rows)
    return response_loss(resident, batch), batch.tokens


def _weight(examples: TokenSet | Pairs, rows: NDArray[np.int64]) -> int:
    """What a batch's loss is a mean over: its response tokens, or its pairs."""
    if isinstance(examples, Pairs):
        return len(rows)
    return sum(examples.length(int(row)) - int(examples.prompts[row]) for row in rows)


def _gradients(
    resident: Resident,
    examples: TokenSet | Pairs,
    rows: NDArray[np.int64],
    weight: int,
    plan: Plan,
    scaler: Any,
    optimizer: torch.optim.Optimizer,
) -> tuple[float, int]:
    """Add the gradient of `rows` to the parameters; returns their part of the batch's mean loss,
    which is a sum divided by the whole batch's `weight`, and their real tokens.

    A batch that does not fit is halved as long as a pass keeps the device busy, then activations
    are computed again instead of kept (a third more work), then it is halved on. What was found is
    remembered. The gradient is a sum over examples divided by the batch's weight, so the result is
    the same.
    """
    while True:
        size = resident.micro_batch or max(1, len(rows))
        try:
            total, count = 0.0, 0
            for start in range(0, len(rows), size):
                summed, real = _summed_loss(resident, examples, rows[start : start + size], plan)
                loss = summed / weight
                scaler.scale(loss).backward()
                total += float(loss.detach())
                count += real
            return total, count
        except torch.OutOfMemoryError:
            pass  # mended outside: the traceback would keep the activations alive
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        _take_less(resident, examples, rows)


def _take_less(resident: Resident, examples: Sized, rows: NDArray[np.int64]) -> None:
    """Find a way to make the batch of `rows`, which did not fit, in less memory.

    Raises:
        torch.OutOfMemoryError: there is none left.
    """
    size = min(resident.micro_batch or len(rows), len(rows))
    length = sum(examples.length(int(row)) for row in rows) / len(rows)
    busy = size > 1 and size / 2 * length >= _BUSY_TOKENS
    if not busy and resident.checkpoint():
        log.warning("a batch of %d does not fit; computing activations twice", size)
    elif size > 1:
        resident.micro_batch = size // 2
        log.warning("a batch of %d does not fit; using %d at a time", size, size // 2)
    else:
        raise torch.OutOfMemoryError("one example alone does not fit")
