"""One site's local work of one round: AdamW on the adapter, the base frozen.

The optimizer is fresh in every round (its moments belong to an adapter that averaging has
replaced) and the learning rate constant inside one. The loss is the mean over the response tokens
of the batch, so a long answer counts more than a short one, as in a plain Hugging Face loop.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from protocol.states import Reason

from .adapter import Adapter
from .batches import Batch, by_length, collate
from .errors import Refusal
from .model import Resident
from .tokens import TokenSet

log = logging.getLogger("fedward.trainer")


@dataclass(frozen=True)
class Plan:
    """What to do in one round."""

    batch_size: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    seed: int  # of dropout
    factors: frozenset[str] = frozenset({"A", "B"})  # LoRA factors that train
    proximal_mu: float = 0.0  # FedProx (arXiv 1812.06127): mu/2 |w - w_received|^2 is added


@dataclass
class Done:
    """What was done: one loss (nats per response token) a step."""

    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    examples: int = 0


def train(
    resident: Resident,
    adapter: Adapter,
    tokens: TokenSet,
    rows: NDArray[np.int64],
    plan: Plan,
    on_step: Callable[[float, int], None],
) -> Done:
    """Train the adapter that is in `resident` now, on `rows` in order, `plan.batch_size` a step.

    `on_step(loss, tokens)` is called after each step; what it raises ends the training there.

    Raises:
        Refusal: the loss is not finite.
        torch.OutOfMemoryError: one example alone does not fit.
    """
    parameters = adapter.train_only(plan.factors)
    anchor = [p.detach().clone() for p in parameters] if plan.proximal_mu else []
    optimizer = torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay)
    # float16 gradients underflow without it; for the other types it does nothing.
    scaler = torch.amp.GradScaler(resident.device.type, enabled=resident.dtype is torch.float16)
    torch.manual_seed(plan.seed)
    done = Done()
    resident.model.train()
    try:
        for start in range(0, len(rows), plan.batch_size):
            chosen = by_length(tokens, rows[start : start + plan.batch_size])
            optimizer.zero_grad(set_to_none=True)
            loss, count = _gradients(resident, tokens, chosen, scaler, optimizer)
            if not math.isfinite(loss):
                raise Refusal(
                    Reason.NOT_FINITE, f"the loss is {loss} at step {len(done.losses) + 1}"
                )
            scaler.unscale_(optimizer)
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
    finally:
        resident.model.eval()
        optimizer.zero_grad(set_to_none=True)
        adapter.train_only(frozenset({"A", "B"}))
    return done


def response_loss(resident: Resident, batch: Batch) -> torch.Tensor:
    """Summed cross-entropy of the response tokens (nats), a float32 scalar."""
    with resident.autocast():
        logits = resident.response_logits(batch)
    return cross_entropy(logits.float(), batch.targets, reduction="sum")


def _gradients(
    resident: Resident,
    tokens: TokenSet,
    rows: NDArray[np.int64],
    scaler: Any,
    optimizer: torch.optim.Optimizer,
) -> tuple[float, int]:
    """Add the batch's gradient to the parameters; returns its mean loss and its real tokens.

    A batch that does not fit is halved, and the smaller size is remembered: the gradient is a sum
    over examples divided by the batch's response tokens, so the result is the same.
    """
    targets = sum(tokens.length(int(row)) - int(tokens.prompts[row]) for row in rows)
    while True:
        size = resident.micro_batch or len(rows)
        try:
            total, count = 0.0, 0
            for start in range(0, len(rows), size):
                batch = collate(tokens, rows[start : start + size], resident.device)
                loss = response_loss(resident, batch) / targets
                scaler.scale(loss).backward()
                total += float(loss.detach())
                count += batch.tokens
            return total, count
        except torch.OutOfMemoryError:
            if size <= 1:
                raise
        # Out of the except clause: the traceback would keep the activations alive.
        resident.micro_batch = min(size, len(rows)) // 2
        log.warning("a batch of %d does not fit; using %d at a time", size, resident.micro_batch)
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
