"""DPO: the loss of its paper, the base asked once, and which answer is preferred in the end."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedward.embedded.model import WEIGHTS
from hospital_node.trainer import preference
from hospital_node.trainer.adapter import initial
from hospital_node.trainer.data import Row, Rows, load_rows, read_rows
from hospital_node.trainer.errors import Refusal
from hospital_node.trainer.model import Resident, Shelf
from hospital_node.trainer.preference import (
    Pairs,
    ask_base,
    evaluate_pairs,
    make_pairs,
    pair_loss,
    paired_rows,
    take,
)
from hospital_node.trainer.tokens import tokenize_pairs
from hospital_node.trainer.training import Done, Plan, train
from protocol.messages import Task
from protocol.site import ColumnSettings
from protocol.states import Reason
from protocol.study import AdapterSettings

from .lab import SiteFolder, request, study, write_jsonl
from .test_adapter import base
from .test_model import settings
from .test_tasks import Lab

PAIRED = [
    Row(f"which drug helps with {word}", "", good, rejected=bad)
    for word, good, bad in [
        ("fever", "salve", "tonic"),
        ("cough", "pill one two three", "no"),
        ("rash", "yes", "salve red blue green"),
        ("pain", "tonic", "pill"),
        ("fever", "one two", "ward"),
        ("the dose", "blue green", "yes no maybe"),
    ]
]
PLAN = Plan(3, 0.02, 0.0, 1.0, 0, beta=0.3)
ROWS = np.arange(6)


def ready(
    folder: Path, tmp_path: Path, asked: dict[str, Any] | None = None, quantization: str = "none"
) -> tuple[Resident, Pairs]:
    """A tiny model without dropout, with an adapter that has an opinion, and pairs for it."""
    made = Shelf(SiteFolder(tmp_path, folder).settings()).get(settings(quantization))
    for module in made.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    adapter = made.use(AdapterSettings.model_validate({"rank": 4, "alpha": 8} | (asked or {})))
    random = np.random.default_rng(0).normal(0, 0.1, adapter.manifest.numel)
    adapter.load(adapter.initial(0) + random.astype(np.float32))
    return made, make_pairs(tokenize_pairs(made.tokenizer, "alpaca", PAIRED, 128), None)


def likelihood(model: Any, tokens: Any, place: int) -> torch.Tensor:
    """Summed log-likelihood of one answer by itself, from all of the model's logits."""
    sequence, prompt = tokens[place]
    ids = torch.from_numpy(sequence.astype(np.int64)).view(1, -1)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    logits = logits[len(logits) - len(sequence) :]
    spoken = logits[prompt - 1 : -1].log_softmax(-1)
    total: torch.Tensor = spoken.gather(1, ids[0, prompt:].view(-1, 1)).sum()
    return total


def reference_loss(model: Any, other: Any, pairs: Pairs, beta: float) -> torch.Tensor:
    """Equation 7 of arXiv 2305.18290, answer by answer, with a second model for the base."""
    losses = []
    for row in range(len(pairs)):
        parts = []
        for place in (2 * row, 2 * row + 1):
            with torch.no_grad():
                before = likelihood(other, pairs.sequences, place)
            parts.append(likelihood(model, pairs.sequences, place) - before)
        losses.append(-torch.log(1 / (1 + torch.exp(-beta * (parts[0] - parts[1])))))
    return torch.stack(losses).sum()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize(
    "asked",
    [{}, {"kind": "dora"}, {"kind": "ia3"}, {"kind": "prompt"}, {"kind": "prefix"}],
    ids=["lora", "dora", "ia3", "prompt", "prefix"],
)
def test_loss_and_gradient_are_those_of_the_paper(
    bases: Callable[[str], Path], tmp_path: Path, kind: str, asked: dict[str, Any]
) -> None:
    """Packed or padded, with the adapter switched off for the base: as with two models."""
    made, pairs = ready(bases(kind), tmp_path, asked)
    assert made.adapter is not None
    expected = reference_loss(made.model, base(bases(kind)), pairs, 0.3)
    expected.backward()
    wanted = [p.grad.clone() for p in made.adapter.parameters if p.grad is not None]
    for packing in {made.packing, False}:
        made.packing = packing
        pairs.base[:] = np.nan
        ask_base(made, pairs, ROWS, lambda: None)
        made.model.zero_grad()
        loss, real = pair_loss(made, pairs, ROWS, 0.3)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
        assert real == sum(pairs.length(row) for row in range(6))
        for parameter, gradient in zip(made.adapter.parameters, wanted, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-3)


def test_a_large_vocabulary_is_done_in_blocks(
    bases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 16 rows of logits at a time the loss and its gradient are the same."""
    made, pairs = ready(bases("llama"), tmp_path)
    assert made.adapter is not None
    found = []
    for limit in (1 << 28, 1):
        monkeypatch.setattr("hospital_node.trainer.model._LOGIT_BYTES", limit)
        pairs.base[:] = np.nan
        ask_base(made, pairs, ROWS, lambda: None)
        made.model.zero_grad()
        loss, _ = pair_loss(made, pairs, ROWS, 0.3)
        loss.backward()
        gradients = [p.grad.clone() for p in made.adapter.parameters if p.grad is not None]
        found.append((float(loss.detach()), torch.cat([g.flatten() for g in gradients])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-6, rtol=1e-4)


def steps(made: Resident, pairs: Pairs, plan: Plan = PLAN, passes: int = 1) -> Done:
    """Passes over the six pairs."""
    assert made.adapter is not None
    return train(made, made.adapter, pairs, np.tile(ROWS, passes), plan, lambda *_: None)


def test_the_base_is_asked_once(
    bases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not again in a second round, nor after a restart, and anew after a damaged file."""
    asked: list[int] = []
    ask = preference.log_likelihoods

    def noting(resident: Resident, batch: Any) -> torch.Tensor:
        if not resident.adapted:
            asked.append(len(batch.counts) // 2)
        return ask(resident, batch)

    monkeypatch.setattr(preference, "log_likelihoods", noting)
    made, pairs = ready(bases("llama"), tmp_path)
    cache = tmp_path / "cache" / "base.npz"
    pairs = make_pairs(pairs.sequences, cache)
    steps(made, pairs)
    assert sum(asked) == 6
    steps(made, pairs)
    again = make_pairs(pairs.sequences, cache)
    np.testing.assert_array_equal(again.base, pairs.base)
    steps(made, again)
    assert sum(asked) == 6
    assert cache.stat().st_mode & 0o777 == 0o600
    cache.write_bytes(cache.read_bytes()[:-20])
    steps(made, make_pairs(pairs.sequences, cache))
    assert sum(asked) == 12
    other = tokenize_pairs(made.tokenizer, "alpaca", PAIRED[:5] + PAIRED[:1], 128)
    assert np.isnan(make_pairs(other, cache).base).all(), "another row, another answer"


def test_halving_the_batch_changes_nothing(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """A mean over the pairs of a step is the same in one pass and in three."""
    made, pairs = ready(bases("llama"), tmp_path)
    assert made.adapter is not None
    first = made.adapter.read()
    whole = steps(made, pairs).losses
    after = made.adapter.read()
    made.adapter.load(first)
    made.micro_batch = 1
    assert steps(made, pairs).losses == pytest.approx(whole, rel=1e-5)
    np.testing.assert_allclose(made.adapter.read(), after, atol=1e-3)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_study_begins_undecided_and_learns_the_preference(
    tmp_path: Path, quantization: str
) -> None:
    """The embedded model begins at ln 2 and one half, and ends with every pair the right way."""
    made, _ = ready(WEIGHTS, tmp_path, {"rank": 8}, quantization)
    adapter = made.adapter
    assert adapter is not None
    adapter.load(initial(adapter.manifest, 0))
    pairs = make_pairs(tokenize_pairs(made.tokenizer, "alpaca", PAIRED, 128), None)
    before = evaluate_pairs(made, pairs, ROWS, 0.1, lambda *_: None)
    assert before.loss == pytest.approx(math.log(2), abs=1e-3)
    assert before.accuracy == 0.5
    done = steps(made, pairs, Plan(6, 3e-3, 0.0, 1.0, 0, beta=0.1), passes=30)
    seen: list[tuple[int, int]] = []
    after = evaluate_pairs(made, pairs, ROWS, 0.1, lambda *at: seen.append(at))
    assert done.losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert after.loss < 0.3
    assert (after.examples, after.choice_correct, after.answer_examples) == (6, 6, 0)
    assert seen[-1] == (6, 6)


def test_a_long_pair_keeps_one_prompt(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """Both answers are cut to the room that is left by the prompt that both follow."""
    made, _ = ready(bases("llama"), tmp_path)
    long = [Row("dose " * 50, "", "red " * 30, rejected="blue"), PAIRED[0]]
    tokens = tokenize_pairs(made.tokenizer, "plain", long, 48)
    (chosen, prompt), (rejected, other) = tokens[0], tokens[1]
    assert prompt == other
    np.testing.assert_array_equal(chosen[:prompt], rejected[:prompt])
    assert len(chosen) == 48
    assert len(rejected) == prompt + 2
    assert tokens.truncated == 2


def test_rows_taken_apart_score_as_before(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """What is handed to another process is the same pairs, with what the base said."""
    made, pairs = ready(bases("llama"), tmp_path)
    ask_base(made, pairs, ROWS, lambda: None)
    some = np.array([4, 1, 2])
    part = take(pairs, some)
    ours, _ = pair_loss(made, part, np.arange(3), 0.3)
    theirs, _ = pair_loss(made, pairs, some, 0.3)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)


# A hospital's files


def test_preferences_are_read_from_their_columns(tmp_path: Path) -> None:
    """Chosen is the output, rejected stands beside it; plain rows may be in the same file."""
    path = write_jsonl(
        tmp_path / "rows.jsonl",
        [
            {"instruction": "q", "good": "a", "bad": "b"},
            {"instruction": "q", "output": "a", "rejected": True},
            {"instruction": "q", "output": "a", "good": "a", "bad": "c"},
        ],
    )
    columns = ColumnSettings(chosen="good", rejected="bad")
    assert read_rows(path, columns) == [
        Row("q", "", "a", rejected="b"),
        Row("q", "", "a"),
        Row("q", "", "a", rejected="c"),
    ]
    for suffix in ("csv", "parquet"):
        other = tmp_path / f"rows.{suffix}"
        if suffix == "csv":
            other.write_text("instruction,chosen,rejected\nq,a,b\n")
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            row = {"instruction": "q", "chosen": "a", "rejected": "b", "mrn": "7"}
            pq.write_table(pa.Table.from_pylist([row]), other)
        assert read_rows(other, ColumnSettings()) == [Row("q", "", "a", rejected="b")]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"chosen": "a"}, "line 1: column 'chosen' needs 'rejected' beside it"),
        ({"chosen": "a", "rejected": " "}, "needs 'rejected' beside it"),
        ({"chosen": "a", "rejected": "a "}, "are the same, which prefers nothing"),
        ({"chosen": "a", "rejected": "b", "output": "c"}, "two different answers"),
        ({"chosen": "a", "rejected": ["b"]}, "column 'rejected' must be text"),
    ],
)
def test_a_broken_preference_is_refused(tmp_path: Path, row: dict[str, Any], sentence: str) -> None:
    """With file, line and column, and without the answer's text."""
    path = write_jsonl(tmp_path / "rows.jsonl", [{"instruction": "q"} | row])
    with pytest.raises(Refusal, match=sentence) as caught:
        read_rows(path, ColumnSettings())
    assert caught.value.reason is Reason.DATA_UNREADABLE


def preferences(count: int) -> list[dict[str, Any]]:
    """Rows whose chosen answer is always the same drug."""
    return [
        {"instruction": f"which drug for ward {number}", "chosen": "salve", "rejected": "tonic"}
        for number in range(count)
    ]


def test_a_round_at_a_site(site: SiteFolder) -> None:
    """Prepare counts pairs, a round lowers the loss, and evaluation says how many are right."""
    lab = Lab(site)
    for name in ("train", "heldout"):
        write_jsonl(site.home / f"{name}.jsonl", preferences(12 if name == "train" else 4))
    asked = study(training={"objective": "dpo", "steps": 6, "batch_size": 4, "max_length": 96,
                            "learning_rate": 0.02})  # fmt: skip
    prepared = lab.ask(request(Task.PREPARE, asked)).reply
    assert prepared.description is not None
    assert prepared.evaluation is not None
    assert prepared.description.train_examples == 12
    assert prepared.description.heldout_examples == 4
    assert prepared.evaluation.accuracy == 0.5
    manifest = prepared.description.manifest
    first = initial(manifest, asked.seed)
    answer, delta = lab.train(asked, first, 1)
    assert answer.reply.training is not None
    assert answer.reply.training.loss_last < answer.reply.training.loss_first
    after, _ = lab.train(asked, first + delta, 2)
    assert after.reply.evaluation is not None
    assert after.reply.evaluation.accuracy == 1.0
    assert after.reply.evaluation.loss < prepared.evaluation.loss
    lone = lab.ask(request(Task.LONE, asked)).reply
    assert lone.evaluation is not None
    assert lone.evaluation.choice_examples == 4


def test_a_site_without_preferences_says_so(site: SiteFolder) -> None:
    """A study of preferences is refused with the columns' names, and answers alone still train."""
    lab = Lab(site)
    with pytest.raises(Refusal, match="none of the 40 train rows has a rejected answer") as caught:
        lab.prepare(study(training={"objective": "dpo"}))
    assert caught.value.reason is Reason.DATA_EMPTY
    assert lab.prepare(study()).train_examples == 40


def test_rows_without_a_rejected_answer_are_left_out(
    bases: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the site's log says how many."""
    made, _ = ready(bases("llama"), tmp_path)
    rows = Rows((*PAIRED, Row("q", "", "a")), tuple(PAIRED[:2]), "0" * 64)
    train_pairs, heldout = paired_rows(made.tokenizer, "plain", rows, 64, tmp_path / "c")
    assert (len(train_pairs), heldout.rows) == (6, 2)
    assert "1 of 7 train rows have no rejected answer" in caplog.text


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"prompt": {"template": "text"}}, "'text' has no prompt"),
        ({"aggregation": {"lora": "fedex"}}, "'fedex' changes in every round"),
        ({"aggregation": {"lora": "flora"}}, "'flora' changes in every round"),
    ],
)
def test_what_does_not_fit_is_refused_at_submission(section: dict[str, Any], sentence: str) -> None:
    """Two answers need a prompt, and what they are measured against must stay."""
    with pytest.raises(ValidationError, match=sentence):
        study(training={"objective": "dpo"}, **section)


def test_splitting_keeps_pairs_whole(tmp_path: Path) -> None:
    """Rows that differ in their rejected answer alone are different rows."""
    rows = [{"instruction": "q", "chosen": "a", "rejected": f"b{n}"} for n in range(20)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    from protocol.site import DataSettings

    found = load_rows(DataSettings(train=(path,), heldout_fraction=0.2))
    assert (len(found.train), len(found.heldout)) == (16, 4)
    assert not set(found.train) & set(found.heldout)
