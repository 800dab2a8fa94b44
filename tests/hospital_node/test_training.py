"""Local training: the same losses as a plain Hugging Face loop, and the terms that are added."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hospital_node.trainer import training
from hospital_node.trainer.adapter import initial
from hospital_node.trainer.batches import by_length, collate, token_batches
from hospital_node.trainer.errors import Cancelled, Refusal
from hospital_node.trainer.model import Resident, Shelf
from hospital_node.trainer.tokens import TokenSet
from hospital_node.trainer.training import Done, Plan, train
from protocol.states import Reason
from protocol.study import AdapterSettings, ModelSettings

from .lab import SiteFolder
from .test_model import sequences

TOKENS = sequences(5, 30, 12, 9, 21, 14, 7, 16)
PLAN = Plan(batch_size=4, learning_rate=0.01, weight_decay=0.0, max_grad_norm=1.0, seed=0)
ROWS = np.array([3, 1, 4, 0, 5, 2, 6, 7, 1, 2, 3, 4])


@pytest.fixture
def made(bases: Callable[[str], Path], tmp_path: Path) -> Resident:
    """The tiny Llama with a fresh adapter."""
    return fresh(bases("llama"), tmp_path)


def fresh(base: Path, tmp_path: Path) -> Resident:
    """A tiny model with a fresh adapter and no dropout."""
    resident = Shelf(SiteFolder(tmp_path, base).settings()).get(
        ModelSettings(base="any", quantization="none")
    )
    for module in resident.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    adapter = resident.use(AdapterSettings(rank=4, alpha=8))
    adapter.load(initial(adapter.manifest, 0))
    return resident


def run(made: Resident, plan: Plan = PLAN, tokens: TokenSet = TOKENS) -> Done:
    """Three steps."""
    assert made.adapter is not None
    return train(made, made.adapter, tokens, ROWS, plan, lambda *_: None)


def plain_loop(model: Any, batches: list[list[int]]) -> list[float]:
    """Transformers' own loss with labels, torch's own AdamW: what everybody writes."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0)
    losses = []
    model.train()
    for batch in batches:
        longest = max(TOKENS.length(row) for row in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(batch):
            sequence, prompt = TOKENS[row]
            ids[place, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
            labels[place, prompt : len(sequence)] = ids[place, prompt : len(sequence)]
            mask[place, : len(sequence)] = 1
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_the_losses_are_those_of_a_plain_loop(
    bases: Callable[[str], Path], tmp_path: Path, kind: str, packing: bool
) -> None:
    """Step by step the same loss as transformers' own on the same tokens, and the same weights."""
    made = fresh(bases(kind), tmp_path)
    assert made.adapter is not None
    assert made.packing, "these three can be packed"
    made.packing = packing
    done = run(made)
    ours = made.adapter.read()
    made.adapter.load(initial(made.adapter.manifest, 0))
    batches = [ROWS[start : start + 4].tolist() for start in range(0, 12, 4)]
    assert done.losses == pytest.approx(plain_loop(made.model, batches), rel=1e-4)
    # Adam divides by the gradient's size, so where that is near zero a rounding error is a step.
    np.testing.assert_allclose(ours, made.adapter.read(), atol=2e-3)
    assert done.tokens == sum(TOKENS.length(int(row)) for row in ROWS)
    assert done.examples == 12


def test_memory_is_saved_by_computing_twice(
    made: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory with a small batch: activations are recomputed, with the same losses."""
    assert made.adapter is not None
    expected = run(made).losses
    made.adapter.load(initial(made.adapter.manifest, 0))
    loss = training.response_loss

    def cramped(resident: Resident, batch: Any) -> torch.Tensor:
        if not resident.checkpointing:
            raise torch.OutOfMemoryError("no room")
        return loss(resident, batch)

    monkeypatch.setattr(training, "response_loss", cramped)
    assert run(made).losses == pytest.approx(expected, rel=1e-5)
    assert made.checkpointing
    assert made.micro_batch == 0
    assert all(
        module.gradient_checkpointing
        for module in made.model.modules()
        if hasattr(module, "gradient_checkpointing")
    )


def test_a_large_batch_is_halved_before_anything_is_computed_twice(
    made: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While half a batch keeps the device busy, halving is the cheaper way to save memory."""
    monkeypatch.setattr(training, "_BUSY_TOKENS", 20)
    loss = training.response_loss

    def cramped(resident: Resident, batch: Any) -> torch.Tensor:
        if len(batch.counts) > 2:
            raise torch.OutOfMemoryError("no room")
        return loss(resident, batch)

    monkeypatch.setattr(training, "response_loss", cramped)
    run(made)
    assert made.micro_batch == 2
    assert not made.checkpointing


def test_a_batch_that_does_not_fit_is_halved(
    made: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory with four examples at once: two at a time give the same losses."""
    assert made.adapter is not None
    expected = run(made).losses
    made.adapter.load(initial(made.adapter.manifest, 0))
    loss = training.response_loss

    def cramped(resident: Resident, batch: Any) -> torch.Tensor:
        if len(batch.counts) > 2:
            raise torch.OutOfMemoryError("no room")
        return loss(resident, batch)

    monkeypatch.setattr(training, "response_loss", cramped)
    assert run(made).losses == pytest.approx(expected, rel=1e-5)
    assert made.micro_batch == 2


def test_one_example_that_does_not_fit_is_out_of_memory(
    made: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is an end to halving."""

    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(training, "response_loss", full)
    with pytest.raises(torch.OutOfMemoryError):
        run(made)


def test_the_proximal_term_pulls_back(made: Resident) -> None:
    """FedProx's gradient is the loss's plus mu (w - w_received): the change shrinks with mu."""
    assert made.adapter is not None
    first = initial(made.adapter.manifest, 0)
    norms = []
    for mu in (0.0, 1.0, 100.0):
        made.adapter.load(first)
        run(made, Plan(8, 0.01, 0.0, 1e9, 0, proximal_mu=mu))
        norms.append(float(np.linalg.norm(made.adapter.read() - first)))
    assert norms[0] > norms[1] > norms[2]


@pytest.mark.parametrize("mu", [0.0, 0.5, 2.0])
def test_the_proximal_term_moves_the_optimum_as_theory_says(
    made: Resident, monkeypatch: pytest.MonkeyPatch, mu: float
) -> None:
    """For a loss h/2 |w - t|^2 training ends at (h t + mu w_received) / (h + mu)."""
    assert made.adapter is not None
    received, h = initial(made.adapter.manifest, 0), 0.5
    goal = received + 0.1
    made.adapter.load(goal)
    targets = [parameter.detach().clone() for parameter in made.adapter.parameters]

    def quadratic(resident: Resident, batch: Any) -> torch.Tensor:
        assert resident.adapter is not None
        pairs = zip(resident.adapter.parameters, targets, strict=True)
        total = sum(((w - t) ** 2).sum() for w, t in pairs)
        return h / 2 * total * len(batch.targets)  # the trainer divides by the targets

    monkeypatch.setattr(training, "response_loss", quadratic)
    made.adapter.load(received)
    plan = Plan(1, 1e-3, 0.0, 1e9, 0, proximal_mu=mu)
    train(made, made.adapter, TOKENS, np.zeros(400, np.int64), plan, lambda *_: None)
    optimum = (h * goal + mu * received) / (h + mu)
    np.testing.assert_allclose(made.adapter.read(), optimum, atol=1e-4)


def test_a_slow_site_stops_in_time_and_counts_what_it_did(
    made: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step begins after the study's seconds; the first always does."""
    ticks = iter(range(100))
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)))
    monkeypatch.setattr(training, "time", clock)
    done = run(made, Plan(4, 0.01, 0.0, 1.0, 0, seconds=2.0))
    assert len(done.losses) == 2
    assert done.examples == 8
    assert len(run(made, Plan(4, 0.01, 0.0, 1.0, 0, seconds=0.001)).losses) == 1


def test_eight_bit_moments_are_for_gpus(made: Resident) -> None:
    """On a CPU, where memory is not what lacks, the study's choice changes nothing."""
    assert made.adapter is not None
    expected = run(made).losses
    made.adapter.load(initial(made.adapter.manifest, 0))
    assert run(made, Plan(4, 0.01, 0.0, 1.0, 0, eight_bit=True)).losses == expected


def test_frozen_factors_do_not_move(made: Resident) -> None:
    """With only B training, A is bit for bit what it was, and afterwards both train again."""
    assert made.adapter is not None
    first = initial(made.adapter.manifest, 0)
    run(made, Plan(4, 0.01, 0.0, 1.0, 0, factors=frozenset({"B"})))
    after = made.adapter.read()
    for tensor, place in made.adapter.manifest.slices():
        changed = not np.array_equal(after[place], first[place])
        assert changed == ("lora_B" in tensor.name)
    assert all(parameter.requires_grad for parameter in made.adapter.parameters)


def test_a_loss_that_is_not_finite_ends_the_round(
    made: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A diverged site says so instead of sending what it has."""
    nan = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr(training, "response_loss", lambda *_: nan * 1)
    with pytest.raises(Refusal, match="step 1") as caught:
        run(made)
    assert caught.value.reason is Reason.NOT_FINITE


def test_being_told_to_stop_ends_within_a_step(made: Resident) -> None:
    """What on_step raises ends the training there and leaves the model usable."""
    assert made.adapter is not None
    steps: list[float] = []

    def stop(loss: float, _: int) -> None:
        steps.append(loss)
        raise Cancelled

    with pytest.raises(Cancelled):
        train(made, made.adapter, TOKENS, ROWS, PLAN, stop)
    assert len(steps) == 1
    assert not made.model.training
    assert len(run(made).losses) == 3


def test_a_batch_is_padded_to_its_longest_only() -> None:
    """Targets are the responses, predictors the places before them, and no mask without padding."""
    batch = collate(TOKENS, [0, 3], torch.device("cpu"))
    assert batch.ids.shape == (2, 9)
    assert batch.mask is not None
    assert batch.mask.sum(1).tolist() == [5, 9]
    assert batch.predictors.tolist() == [1, 2, 3, 9 + 3, 9 + 4, 9 + 5, 9 + 6, 9 + 7]
    assert batch.counts.tolist() == [3, 5]
    assert batch.targets.tolist() == [5, 6, 7, 7, 8, 9, 10, 11]
    assert collate(TOKENS, [0], torch.device("cpu")).mask is None


def test_evaluation_batches_stay_in_their_budget() -> None:
    """Every row comes once, and no padded batch is above the budget unless it is one row."""
    ordered = by_length(TOKENS, np.arange(8))
    batches = list(token_batches(TOKENS, ordered, 40))
    assert sorted(np.concatenate(batches).tolist()) == list(range(8))
    for batch in batches:
        padded = len(batch) * max(TOKENS.length(int(row)) for row in batch)
        assert padded <= 40 or len(batch) == 1
