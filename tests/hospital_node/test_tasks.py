"""The four tasks end to end in one process: what a hospital answers, and how rounds follow."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hospital_node.outbound import Update
from hospital_node.trainer import tasks
from hospital_node.trainer.adapter import initial
from hospital_node.trainer.board import Board
from hospital_node.trainer.errors import Cancelled, Refusal
from hospital_node.trainer.health import HealthReader
from hospital_node.trainer.live_data import LiveData
from hospital_node.trainer.tasks import Answer, Tasks
from protocol.codec import vector_digest
from protocol.errors import ProtocolError
from protocol.manifest import AdapterManifest
from protocol.messages import Description, Request, Task
from protocol.states import Reason
from protocol.study import StudySettings

from .lab import SiteFolder, request, study, with_adapter, write_jsonl

CHAT = "{% for m in messages %}{{ m.content }}{{ '</s>' if m.role == 'assistant' }}{% endfor %}"


@dataclass
class Lab:
    """A site's tasks, asked directly."""

    site: SiteFolder
    extra: str = ""
    trainer: str = ""
    secret: bytes = b"k" * 32
    drawn: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.settings = self.site.settings(extra=self.extra, trainer=self.trainer)
        self.settings.state.mkdir(parents=True, exist_ok=True)
        board = Board(self.site.name, HealthReader(self.settings.state, lambda: 0))
        data = LiveData(self.settings.data)
        data.look()
        self.tasks = Tasks(self.settings, data, self.secret, board)

    def ask(self, asked: Request, payload: bytes = b"") -> Answer:
        asked = asked.model_copy(update={"site": self.site.name})
        return self.tasks.answer(asked, payload, 0.0, threading.Event())

    def prepare(self, settings: StudySettings, **changes: Any) -> Description:
        found = self.ask(request(Task.PREPARE, settings, **changes)).reply.description
        assert found is not None
        return found

    def train(
        self, settings: StudySettings, vector: np.ndarray, number: int, **changes: Any
    ) -> tuple[Answer, np.ndarray]:
        """A round from `vector`; the answer and the delta."""
        manifest = self.prepare(settings, evaluate=False).manifest
        asked = request(Task.TRAIN, settings, round=number, **changes)
        answer = self.ask(*with_adapter(asked, manifest, vector))
        return answer, flat(answer.update, manifest)


def flat(update: Update | None, manifest: AdapterManifest) -> np.ndarray:
    """The update as one vector."""
    assert update is not None
    return np.concatenate([update.tensors[t.name].reshape(-1) for t in manifest.tensors])


@pytest.fixture
def lab(site: SiteFolder) -> Lab:
    """The hospital north with the tiny Llama."""
    return Lab(site)


@pytest.fixture
def watched(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The same, noting which rows each call of the training loop gets."""
    train = tasks.train

    def noting(resident: Any, adapter: Any, tokens: Any, rows: Any, *rest: Any) -> Any:
        lab.drawn.append(rows.tolist())
        return train(resident, adapter, tokens, rows, *rest)

    monkeypatch.setattr(tasks, "train", noting)
    return lab


def test_prepare_describes_the_site(lab: Lab) -> None:
    """Counts, hash, layout and the first adapter's digest; the base's accuracy on request."""
    settings = study()
    answer = lab.ask(request(Task.PREPARE, settings, want_initial=True))
    found = answer.reply.description
    assert found is not None
    assert (found.train_examples, found.heldout_examples) == (40, 12)
    assert found.base_sha256 == lab.tasks.shelf.get(settings.model).sha256
    assert answer.reply.evaluation is not None
    vector = flat(answer.update, found.manifest)
    assert vector_digest(vector) == found.initial_digest
    assert lab.ask(request(Task.PREPARE, settings, evaluate=False)).reply.evaluation is None


def test_sites_agree_on_the_beginning(lab: Lab, tmp_path: Path) -> None:
    """Another hospital with other data and another quantization describes the same adapter."""
    other = Lab(SiteFolder(tmp_path / "o", lab.site.base, name="south"), secret=b"o" * 32)
    here = lab.prepare(study())
    there = other.prepare(study(model={"base": "any", "quantization": "nf4"}))
    assert (here.manifest, here.initial_digest) == (there.manifest, there.initial_digest)


def test_the_fingerprint_tells_a_change_and_nothing_else(lab: Lab, tmp_path: Path) -> None:
    """Equal data have other fingerprints at another site or study; a changed row changes it."""
    first = lab.prepare(study(), evaluate=False).data_fingerprint
    assert lab.prepare(study(), evaluate=False).data_fingerprint == first
    assert lab.prepare(study(), evaluate=False, study_id="trial-2").data_fingerprint != first
    twin = Lab(SiteFolder(tmp_path / "t", lab.site.base), secret=b"o" * 32)
    assert twin.prepare(study(), evaluate=False).data_fingerprint != first
    write_jsonl(lab.site.home / "train.jsonl", [{"instruction": "which", "output": "pill"}] * 3)
    changed = lab.prepare(study(), evaluate=False)
    assert changed.train_examples == 3
    assert changed.data_fingerprint != first


def test_a_round_answers_with_the_change(lab: Lab) -> None:
    """The delta is new minus received, its norm is in the numbers, and the adapter learns."""
    settings = study(rounds={"count": 8})
    manifest = lab.prepare(settings).manifest
    vector, losses = initial(manifest, settings.seed), []
    for number in range(1, 5):
        answer, delta = lab.train(settings, vector, number)
        training = answer.reply.training
        assert training is not None
        assert answer.reply.evaluation is not None
        assert (training.steps, training.examples) == (3, 12)
        assert training.update_norm == pytest.approx(float(np.linalg.norm(delta)))
        assert training.epoch == pytest.approx(number * 12 / 40)
        losses.append(answer.reply.evaluation.loss)
        vector = vector + delta
    assert losses[-1] < losses[0]


def test_each_round_draws_new_rows_and_a_resumed_one_the_same(watched: Lab) -> None:
    """Three rounds of 12 from 40 rows share none; asked again, a round draws and answers alike."""
    settings = study(rounds={"count": 8}, adapter={"rank": 4, "alpha": 8, "dropout": 0.1})
    vector = initial(watched.prepare(settings).manifest, settings.seed)
    deltas = [watched.train(settings, vector, number)[1] for number in (1, 2, 3)]
    rows = [row for round_rows in watched.drawn for row in round_rows]
    assert len(rows) == len(set(rows)) == 36
    _, again = watched.train(settings, vector, 2)
    assert watched.drawn[3] == watched.drawn[1]
    np.testing.assert_array_equal(again, deltas[1])


def test_a_restarted_trainer_does_the_same_round(lab: Lab) -> None:
    """A new process with the same site answers a round with the same numbers."""
    settings = study()
    vector = initial(lab.prepare(settings).manifest, settings.seed)
    _, first = lab.train(settings, vector, 2)
    _, second = Lab(lab.site).train(settings, vector, 2)
    np.testing.assert_array_equal(first, second)


def test_alone_means_the_same_work_without_the_others(watched: Lab) -> None:
    """The lone baseline draws the rows of the rounds, in the same steps, from the same adapter."""
    training = {"steps": 3, "batch_size": 4, "learning_rate": 0.01, "max_length": 96,
                "schedule": "cosine"}  # fmt: skip
    settings = study(training=training)
    manifest = watched.prepare(settings).manifest
    first = initial(manifest, settings.seed)
    answer = watched.ask(request(Task.LONE, settings))
    alone = watched.drawn.copy()
    assert answer.update is None, "numbers only"
    assert answer.reply.training is not None
    assert answer.reply.training.steps == 12
    watched.drawn.clear()
    vector = first
    from protocol.schedule import learning_rate

    for number in range(1, 5):
        rate = learning_rate(settings.training, number, 4)
        vector = vector + watched.train(settings, vector, number, learning_rate=rate)[1]
    assert watched.drawn == alone
    measured = watched.ask(*with_adapter(request(Task.EVALUATE, settings), manifest, vector))
    assert answer.reply.evaluation is not None
    assert measured.reply.evaluation is not None
    assert answer.reply.evaluation.loss == pytest.approx(measured.reply.evaluation.loss, rel=1e-3)
    sent = watched.ask(*with_adapter(request(Task.LONE, settings), manifest, first))
    assert sent.reply.evaluation == answer.reply.evaluation


def test_one_base_for_two_studies(lab: Lab) -> None:
    """A second study with another adapter and template loads nothing again."""
    lab.prepare(study())
    lab.prepare(study(name="second", adapter={"rank": 2}, prompt={"template": "plain"}))
    lab.prepare(study())
    assert lab.tasks.shelf.loads == 1


def test_data_are_tokenized_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the next round nor the next process tokenizes again."""
    lab.prepare(study())

    def never(*_: object) -> None:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(tasks.tokens, "tokenize_rows", never)
    lab.prepare(study())
    lab.prepare(study(name="second"))
    Lab(lab.site).prepare(study())


def test_a_site_narrows_what_a_study_asks(site: SiteFolder) -> None:
    """Steps and batch size are cut to the site's limits; the numbers say what was done."""
    lab = Lab(site, extra="[limits]\nmax_steps = 2\nmax_batch_size = 3\nmax_rank = 4")
    settings = study()
    vector = initial(lab.prepare(settings).manifest, settings.seed)
    training = lab.train(settings, vector, 1)[0].reply.training
    assert training is not None
    assert (training.steps, training.examples) == (2, 6)
    found = lab.prepare(study(adapter={"rank": 8, "alpha": 8}))
    assert found.rank == 4
    shapes = {t.shape for t in found.manifest.tensors if "q_proj.lora_A" in t.name}
    assert shapes == {(8, 64)}  # the study's layout, not this site's part of it
    with pytest.raises(Refusal, match=r"limits\.max_rank = 4") as caught:
        lab.prepare(study(adapter={"rank": 8}, aggregation={"strategy": "median"}))
    assert caught.value.reason is Reason.SITE_FORBIDS


def test_a_rank_that_does_not_fit_into_memory_is_halved(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site with little memory takes part with the rank that it can train."""
    settings = study(adapter={"rank": 16, "alpha": 8})
    numel = lab.prepare(settings, evaluate=False).manifest.numel
    # Gradient and two moments are 12 bytes a value, and may take half of what is free.
    room = 2 * 12 * numel // 4 + 100
    monkeypatch.setattr(
        "hospital_node.trainer.adapter.psutil.virtual_memory",
        lambda: SimpleNamespace(available=room),
    )
    assert lab.prepare(settings, evaluate=False).rank == 4


def test_the_stricter_norm_limit_counts(site: SiteFolder) -> None:
    """The door is given the smaller of the site's limit and the study's."""
    for extra, limit in (("[limits]\nmax_update_norm = 0.5", 0.5), ("", 2.0)):
        lab = Lab(site, extra=extra)
        settings = study(aggregation={"max_update_norm": 2.0})
        vector = initial(lab.prepare(settings).manifest, settings.seed)
        update = lab.train(settings, vector, 1)[0].update
        assert update is not None
        assert update.max_norm == limit


def test_adapters_of_another_layout_are_refused(lab: Lab) -> None:
    """A wrong manifest, length, kind or damaged encoding is told apart before anything trains."""
    settings = study()
    manifest = lab.prepare(settings).manifest
    vector = initial(manifest, 0)
    good, data = with_adapter(request(Task.TRAIN, settings), manifest, vector)
    assert good.payload is not None
    cases: list[tuple[dict[str, Any], Reason]] = [
        ({"manifest_digest": "0" * 64}, Reason.WRONG_MANIFEST),
        ({"manifest_digest": None}, Reason.WRONG_MANIFEST),
        ({"payload": good.payload.model_copy(update={"numel": 5})}, Reason.WRONG_SHAPE),
        ({"payload": None}, Reason.MALFORMED),
    ]
    for changes, reason in cases:
        with pytest.raises(Refusal) as caught:
            lab.ask(good.model_copy(update=changes), data)
        assert caught.value.reason is reason
    for change in ({"kind": "delta"}, {"decoded_digest": "0" * 64}, {"codec": "unknown"}):
        payload = good.payload.model_copy(update=change)
        with pytest.raises(ProtocolError):
            lab.ask(good.model_copy(update={"payload": payload}), data)


def test_work_can_be_called_off(lab: Lab) -> None:
    """A set cancel event ends training and evaluation at the next step."""
    cancel = threading.Event()
    cancel.set()
    for task in (Task.PREPARE, Task.LONE):
        with pytest.raises(Cancelled):
            lab.tasks.answer(request(task, study()), b"", 0.0, cancel)


def test_a_missing_template_is_a_sentence_in_the_log_only(lab: Lab) -> None:
    """A chat study on a base model without a template is refused as unreadable model."""
    with pytest.raises(Refusal, match="chat template") as caught:
        lab.prepare(study(prompt={"template": "chat"}))
    assert caught.value.reason is Reason.MODEL_UNREADABLE
    lab.tasks.shelf.get(study().model).tokenizer.chat_template = CHAT
    assert lab.prepare(study(prompt={"template": "chat"})).train_examples == 40


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_other_architectures_learn_too(
    bases: Callable[[str], Path], tmp_path: Path, kind: str, quantization: str
) -> None:
    """GPT-2 and Qwen style models, each tokenizer its own, quantized on the CPU: loss goes down."""
    lab = Lab(SiteFolder(tmp_path / "h", bases(kind)))
    settings = study(
        model={"base": "any", "quantization": quantization},
        training={"steps": 6, "batch_size": 8, "learning_rate": 0.01, "max_length": 256},
    )
    first = lab.prepare(settings)
    vector = initial(first.manifest, settings.seed)
    answer, delta = lab.train(settings, vector, 1)
    asked = request(Task.EVALUATE, settings)
    after = lab.ask(*with_adapter(asked, first.manifest, vector + delta)).reply.evaluation
    assert answer.reply.evaluation is not None
    assert after is not None
    assert after.loss < 0.9 * answer.reply.evaluation.loss
