"""Attention over sequences that lie end to end in one row, each seeing only itself.

Padding costs every layer; here only attention itself is padded. Linear layers, norms and the loss
run over the real tokens of a flat row; inside the attention function queries, keys and values are
gathered into a small padded block, go through torch's scaled dot-product attention (its flash
kernel where the mask is causal), and are scattered back. So it is exact on a CPU and on any GPU
without another package.

A segment is a sequence (causal), or a tree: a prompt and several responses to it that do not see
one another, so that a prompt is computed once for all its options.

It is registered with transformers under `NAME`; a model takes it when its configuration names it
and its layers hand unknown keyword arguments on to attention. Whether one does is measured
(`model.Resident`), not looked up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

NAME: Final = "fedward"


@dataclass(frozen=True)
class Group:
    """Segments of like length, as attention pads them."""

    index: torch.Tensor  # int64 (segments * longest,): places in the flat row
    segments: int
    mask: torch.Tensor | None  # bool (segments, 1, longest, longest); None is causal


@dataclass(frozen=True)
class Layout:
    """Where the segments of a flat row lie."""

    groups: tuple[Group, ...]
    back: torch.Tensor  # int64 (tokens,): a token's place in the groups' outputs laid end to end


@dataclass(frozen=True)
class Segment:
    """`size` tokens from `start` of the flat row: the first `trunk` and then `branches` of them."""

    start: int
    trunk: int
    branches: tuple[int, ...] = ()  # tokens of each branch, one after another

    @property
    def size(self) -> int:
        """Tokens, all branches together."""
        return self.trunk + sum(self.branches)


def lay_out(segments: Sequence[Segment], device: torch.device) -> Layout:
    """The layout of `segments`, which fill a flat row without a gap.

    A segment shorter than half of a group's longest begins the next group: attention alone is
    padded, so at most half of that is wasted.
    """
    tokens = sum(segment.size for segment in segments)
    ordered = sorted(segments, key=lambda segment: -segment.size)
    back = np.empty(tokens, dtype=np.int64)
    groups, first, before = [], 0, 0
    for end in range(1, len(ordered) + 1):
        longest = ordered[first].size
        if end < len(ordered) and 2 * ordered[end].size > longest:
            continue
        members = ordered[first:end]
        # Padding points at places spread over the row: its gradient is zero, but a GPU that adds
        # many zeros to one place does it one after another.
        index = np.arange(len(members) * longest, dtype=np.int64) % tokens
        for place, segment in enumerate(members):
            offset = place * longest
            span = np.arange(segment.size)
            index[offset + span] = segment.start + span
            back[segment.start + span] = before + offset + span
        mask = None
        if any(len(segment.branches) > 1 for segment in members):
            mask = torch.from_numpy(_masks(members, longest)).to(device)
        groups.append(Group(torch.from_numpy(index).to(device), len(members), mask))
        before += len(members) * longest
        first = end
    return Layout(tuple(groups), torch.from_numpy(back).to(device))


def _masks(members: Sequence[Segment], longest: int) -> NDArray[np.bool_]:
    """Who sees whom, bool (segments, 1, longest, longest): the trunk, and the own branch so far."""
    causal = np.tri(longest, dtype=bool)
    masks = np.empty((len(members), 1, longest, longest), dtype=bool)
    for place, segment in enumerate(members):
        branch = np.full(longest, -1)
        ends = segment.trunk + np.cumsum([0, *segment.branches])
        for number, (start, end) in enumerate(pairwise(ends)):
            branch[start:end] = number
        own = (branch[None, :] == branch[:, None]) | (branch[None, :] < 0)
        own[:, segment.size :] = False
        own[np.arange(longest), np.arange(longest)] = True  # padding sees itself: no 0 / 0
        masks[place, 0] = causal & own
    return masks


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | None = None,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Transformers' attention interface; without a `layout` it is its own `sdpa`.

    Args:
        query: (1, heads, tokens, width); `key` and `value` may have fewer heads (GQA).

    Returns:
        (1, tokens, heads, width), and None for the weights.

    Raises:
        TypeError: the architecture wants a term in its attention that is not done here.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if layout is None:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **others
        )
        return result
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name)]
    if unknown:
        raise TypeError(f"attention with {unknown} is not done over packed sequences")
    heads, shared = query.shape[1], query.shape[1] // key.shape[1]
    flat = [states[0].transpose(0, 1) for states in (query, key, value)]  # (tokens, heads, width)
    outputs = []
    for group in layout.groups:
        q, k, v = (
            states.index_select(0, group.index)
            .view(group.segments, -1, *states.shape[1:])
            .transpose(1, 2)
            for states in flat
        )
        native = shared > 1 and q.is_cuda and group.mask is None
        if shared > 1 and not native:
            k, v = (states.repeat_interleave(shared, dim=1) for states in (k, v))
        done = scaled_dot_product_attention(
            q, k, v, attn_mask=group.mask, dropout_p=dropout, scale=scaling,
            is_causal=group.mask is None, enable_gqa=native,
        )  # fmt: skip
        outputs.append(done.transpose(1, 2).reshape(-1, heads, done.shape[-1]))
    whole = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return whole.index_select(0, layout.back).unsqueeze(0), None


def register() -> None:
    """Make `NAME` known to transformers; padded batches get the masks of `sdpa`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
