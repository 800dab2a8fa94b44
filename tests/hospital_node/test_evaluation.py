"""Evaluation: batched and sorted gives what scoring one by one gives."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedward.embedded.corpus import write_hospital_data
from fedward.embedded.model import WEIGHTS
from hospital_node.trainer import evaluation
from hospital_node.trainer.adapter import initial
from hospital_node.trainer.data import Row, read_rows
from hospital_node.trainer.evaluation import evaluate
from hospital_node.trainer.model import Resident, Shelf
from hospital_node.trainer.tokens import tokenize_heldout, tokenize_rows
from hospital_node.trainer.training import Plan, train
from protocol.site import ColumnSettings
from protocol.study import AdapterSettings, ModelSettings

from .lab import SiteFolder, rows

ROWS = [
    Row(row["instruction"], row["input"], row["output"], tuple(row.get("choices", ())),
        row.get("answer", -1))
    for row in rows(30)
] + [Row("which ward", "", "green", ("red", "blue one two three"), 1)]  # fmt: skip


@pytest.fixture
def made(bases: Callable[[str], Path], tmp_path: Path) -> Resident:
    """The tiny Llama with an adapter that has an opinion."""
    resident = Shelf(SiteFolder(tmp_path, bases("llama")).settings()).get(
        ModelSettings(base="any", quantization="none")
    )
    adapter = resident.use(AdapterSettings(rank=4, alpha=8))
    random = np.random.default_rng(0).normal(0, 0.2, adapter.manifest.numel)
    adapter.load(initial(adapter.manifest, 0) + random.astype(np.float32))
    return resident


def one_by_one(made: Resident) -> tuple[float, int, int]:
    """Loss a response token, right choices, right answers: the long way round."""
    tokenizer, nats, tokens, choices, answers = made.tokenizer, 0.0, 0, 0, 0

    def score(row: Row, text: str) -> tuple[float, int, bool]:
        heldout = tokenize_heldout(
            tokenizer, "alpaca", [Row(row.instruction, row.input, text)], 128
        )
        sequence, prompt = heldout.sequences[0]
        ids = torch.from_numpy(sequence.astype(np.int64)).view(1, -1)
        with torch.no_grad():
            predicted = made.model(ids).logits[0, prompt - 1 : -1].log_softmax(-1)
        target = ids[0, prompt:]
        total = predicted.gather(1, target.view(-1, 1)).sum().item()
        return total, len(target), bool((predicted.argmax(-1) == target).all())

    for row in ROWS:
        total, count, exact = score(row, row.output)
        nats, tokens = nats - total, tokens + count
        if row.choices:
            best = max(row.choices, key=lambda text: score(row, text)[0] / len(text.encode()))
            choices += best == row.choices[row.answer]
        else:
            answers += exact
    return nats / tokens, choices, answers


@pytest.mark.parametrize("budget", [64, 4096])
def test_batches_score_as_single_rows(
    made: Resident, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    """Loss and both accuracies are those of scoring each response alone."""
    monkeypatch.setattr(evaluation, "_CPU_TOKENS", budget)
    heldout = tokenize_heldout(made.tokenizer, "alpaca", ROWS, 128)
    found = evaluate(made, heldout, np.arange(len(ROWS)), lambda *_: None)
    loss, choices, answers = one_by_one(made)
    assert found.loss == pytest.approx(loss, rel=1e-4)
    assert (found.choice_correct, found.answer_correct) == (choices, answers)
    assert (found.examples, found.choice_examples, found.answer_examples) == (31, 16, 15)


def test_a_subset_is_scored_alone(made: Resident) -> None:
    """Rows outside the subset have no part in any number."""
    heldout = tokenize_heldout(made.tokenizer, "alpaca", ROWS, 128)
    seen: list[tuple[int, int]] = []
    found = evaluate(made, heldout, np.array([1, 2, 30]), lambda *done: seen.append(done))
    assert (found.examples, found.choice_examples, found.answer_examples) == (3, 2, 1)
    assert seen[-1] == (3 + 1 + 3, 7), "progress counts sequences: options, answers"


def test_a_learnt_answer_counts(tmp_path: Path) -> None:
    """The embedded model, trained on eight questions, gets them right, free and chosen."""
    data = write_hospital_data(tmp_path, ["north"], rows_per_hospital=8)
    small = read_rows(data.train["north"], ColumnSettings())
    site = SiteFolder(tmp_path / "h", WEIGHTS).settings()
    resident = Shelf(site).get(ModelSettings(base="any", quantization="nf4"))
    adapter = resident.use(AdapterSettings(rank=8, alpha=8))
    adapter.load(initial(adapter.manifest, 0))
    heldout = tokenize_heldout(resident.tokenizer, "alpaca", small, 128)
    before = evaluate(resident, heldout, np.arange(8), lambda *_: None)
    plan = Plan(batch_size=8, learning_rate=5e-3, weight_decay=0.0, max_grad_norm=1.0, seed=0)
    train_set = tokenize_rows(resident.tokenizer, "alpaca", small, 128)
    train(resident, adapter, train_set, np.tile(np.arange(8), 30), plan, lambda *_: None)
    after = evaluate(resident, heldout, np.arange(8), lambda *_: None)
    assert 0 < after.choice_examples < 8
    assert after.accuracy == 1.0 > before.accuracy
    assert after.loss < 0.1 < before.loss
