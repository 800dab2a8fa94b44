"""Cross-entropy that never holds all of its logits.

The output embedding is frozen, so the gradient of a block of logits is needed only to make the
gradient of the hidden states behind it: each block's is made as soon as its loss is, and the logits
are dropped (as Liger's fused linear cross-entropy does, arXiv 2410.10989, section 3.2; here in
plain torch, on any device). Nothing is computed twice.
"""

from typing import Any

import torch
from torch.nn.functional import cross_entropy


def token_losses(head: Any, states: torch.Tensor, targets: torch.Tensor, rows: int) -> torch.Tensor:
    """Cross-entropy (nats, float32 (n,)) of each of `head(states)` against its target.

    Args:
        head: the output embedding, a module from (n, width) to (n, vocabulary).
        states: (n, width), any floating type.
        targets: int64 (n,).
        rows: rows of logits held at once.
    """
    trained = any(parameter.requires_grad for parameter in head.parameters())
    if trained or len(states) <= rows:
        return cross_entropy(head(states).float(), targets, reduction="none")
    if not torch.is_grad_enabled():
        places = [slice(start, start + rows) for start in range(0, len(states), rows)]
        return torch.cat([
            cross_entropy(head(states[place]).float(), targets[place], reduction="none")
            for place in places
        ])  # fmt: skip
    losses: torch.Tensor = _Blocks.apply(states, head, targets, rows)  # type: ignore[no-untyped-call]
    return losses


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, head: Any, targets: torch.Tensor, rows: int
    ) -> torch.Tensor:
        gradient = torch.empty_like(states)
        losses = torch.empty(len(states), dtype=torch.float32, device=states.device)
        for start in range(0, len(states), rows):
            place = slice(start, start + rows)
            with torch.enable_grad():
                block = states[place].detach().requires_grad_()
                loss = cross_entropy(head(block).float(), targets[place], reduction="none")
                whole = loss.sum()
            # A state has a part in its own token's loss alone, so the sum's gradient is each one's.
            (gradient[place],) = torch.autograd.grad(whole, block)
            losses[place] = loss.detach()
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype).unsqueeze(1), None, None, None
