"""Packing: several sequences in one row score as each does alone, where that is so."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from hospital_node.trainer import attention
from hospital_node.trainer.attention import Segment, lay_out
from hospital_node.trainer.batches import collate, pack, packed_batches, packed_size, share_prompts
from hospital_node.trainer.losses import token_losses
from hospital_node.trainer.model import Resident
from hospital_node.trainer.tokens import TokenSet
from protocol.study import AdapterSettings

from .test_model import resident, sequences

CPU = torch.device("cpu")


def family() -> TokenSet:
    """Two prompts: one of four tokens with three responses, one of three with one."""
    laid = [[5, 6, 7, 8, 9, 2], [5, 6, 7, 8, 10, 11, 12, 2], [5, 6, 7, 8, 2], [5, 6, 9, 7, 7, 2]]
    starts = np.cumsum([0, *map(len, laid)]).astype(np.int64)
    ids = np.concatenate(laid).astype(np.int32)
    return TokenSet(ids, starts, np.array([4, 4, 4, 3], dtype=np.int32), 0)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_a_packed_row_scores_as_its_sequences_alone(
    bases: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    """Responses that share a prompt, and strangers of other lengths, do not see one another."""
    made = resident(bases(kind), tmp_path)
    assert made.packing
    tokens = family()
    with torch.no_grad():
        alone = torch.cat([made.response_logits(collate(tokens, [row], CPU)) for row in range(4)])
        packed = made.response_logits(pack(tokens, [[0, 1, 2], [3]], CPU))
        torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-4)
        made.shortcut = False
        whole = made.response_logits(pack(tokens, [[0, 1, 2], [3]], CPU))
        torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradients_of_a_packed_row_are_those_of_a_padded_batch(
    bases: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    """Also when activations are computed a second time in the backward pass."""
    made = resident(bases(kind), tmp_path)
    tokens = sequences(5, 30, 12, 9, 21)

    def gradient() -> torch.Tensor:
        assert made.adapter is not None
        grads = [p.grad.flatten() for p in made.adapter.parameters if p.grad is not None]
        made.model.zero_grad()
        return torch.cat(grads)

    made.response_loss(collate(tokens, range(5), CPU)).backward()
    padded = gradient()
    made.response_loss(pack(tokens, [[row] for row in range(5)], CPU)).backward()
    torch.testing.assert_close(gradient(), padded, atol=1e-4, rtol=1e-3)
    assert made.checkpoint()
    made.model.train()
    for module in made.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    made.response_loss(pack(tokens, [[row] for row in range(5)], CPU)).backward()
    torch.testing.assert_close(gradient(), padded, atol=1e-4, rtol=1e-3)


def test_an_architecture_that_mixes_its_own_way_is_padded(
    bases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attention that ignores the layout gives other numbers, and packing is off."""
    ignored = attention.attend

    def deaf(*args: object, layout: object = None, **kwargs: object) -> object:
        return ignored(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "attend", deaf)
    made = resident(bases("llama"), tmp_path)
    assert not made.packing
    assert made.model.config._attn_implementation == "sdpa"
    batch = made.collate(sequences(8, 12), np.array([0, 1]))
    assert batch.layout is None
    assert batch.ids.shape == (2, 12)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("Qwen3", True), ("Mixtral", True), ("Falcon", False), ("Qwen3Next", False)],
)
def test_what_can_be_packed_is_found_by_trying(kind: str, expected: bool) -> None:
    """Attention alone mixes tokens in the first two; ALiBi and linear attention are noticed."""
    shape = {
        "vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256,
    }  # fmt: skip
    extra = {
        "Mixtral": {"num_local_experts": 2},
        "Falcon": {"alibi": True},
        "Qwen3Next": {
            "head_dim": 32, "num_experts": 2, "linear_num_key_heads": 2,
            "linear_num_value_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
            "layer_types": ["linear_attention", "full_attention"],
        },
    }.get(kind, {})  # fmt: skip
    attention.register()
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**shape, **extra)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval().requires_grad_(False)
    made = Resident(Path(), "", 0, None, model, CPU, torch.float32)
    made.use(AdapterSettings(rank=2))
    assert made.packing is expected


def test_a_sliding_window_is_padded_beyond_its_width(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """Within the window packing is right; above it transformers' own mask is."""
    made: Resident = resident(bases("llama"), tmp_path)
    made.model.config.sliding_window = 10
    assert made.packs(10)
    assert not made.packs(11)


def test_a_row_holds_no_padding_and_no_token_twice() -> None:
    """A shared prompt is laid once, last tokens are only targets, positions begin anew."""
    tokens = family()
    groups = share_prompts(tokens, np.arange(4))
    assert [group.tolist() for group in groups] == [[0, 1, 2], [3]]
    batch = pack(tokens, groups, CPU)
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9, 10, 11, 12, 5, 6, 9, 7, 7]]
    assert batch.positions is not None
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 4, 5, 6, 0, 1, 2, 3, 4]]
    assert batch.predictors.tolist() == [3, 4, 3, 5, 6, 7, 3, 10, 11, 12]
    assert batch.targets.tolist() == [9, 2, 10, 11, 12, 2, 2, 7, 7, 2]
    assert batch.counts.tolist() == [2, 4, 1, 3]
    assert batch.tokens == 25
    assert sum(packed_size(tokens, group) for group in groups) == 13
    assert [len(part) for part in packed_batches(tokens, groups, 12)] == [1, 1]
    assert [len(part) for part in packed_batches(tokens, groups, 13)] == [2]


def test_attention_wastes_at_most_half() -> None:
    """Segments are padded beside those of like length; every token has its place back."""
    segments, start = [], 0
    for size in (3, 40, 38, 5, 100, 4):
        segments.append(Segment(start, size))
        start += size
    layout = lay_out(segments, CPU)
    assert [(group.segments, len(group.index)) for group in layout.groups] == [
        (1, 100), (2, 80), (3, 15)
    ]  # fmt: skip
    gathered = torch.cat([group.index for group in layout.groups])
    assert gathered[layout.back].tolist() == list(range(start))
    assert all(group.mask is None for group in layout.groups)


def test_the_loss_in_blocks_is_the_loss() -> None:
    """Value and gradient are those of one large block, whatever is done with the loss after."""
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False).requires_grad_(False)
    targets = torch.randint(0, 50, (23,))
    found = []
    for rows in (5, 100):
        states = torch.linspace(-1, 1, 23 * 8).view(23, 8).requires_grad_()
        loss = token_losses(head, states, targets, rows).sum()
        (3.0 * loss).backward()  # type: ignore[no-untyped-call]
        found.append((loss.detach(), states.grad))
    torch.testing.assert_close(found[0], found[1])
