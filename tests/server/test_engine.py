"""Whole studies of real trainers: each method's two halves, over signed messages, in one process.

Only Flower is left out: letters go from hand to hand.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import peft
import pytest
import torch
import transformers
from conftest import SITES, FakeGrid, Hospital, StudyRunner

from certs.local import FederationPaths
from hospital_node.ledger import Ledger
from hospital_node.outbound import Outbound, reason_of
from hospital_node.trainer.board import Board
from hospital_node.trainer.errors import Refusal
from hospital_node.trainer.health import HealthReader
from hospital_node.trainer.inbox import Inbox
from hospital_node.trainer.live_data import LiveData
from hospital_node.trainer.tasks import Tasks
from protocol.envelope import Envelope, load_signing_key, seal
from protocol.events import RoundFinished, SitePrepared, SiteResult, StudyEvaluated
from protocol.messages import Reply, Request, Task
from protocol.site import load_site
from protocol.states import Reason, SiteOutcome, StudyState
from server.checkpoint import Checkpoint, load_latest
from server.folder import StudyFolder
from tests.hospital_node.lab import SiteFolder, build_model, rows, write_jsonl

log = logging.getLogger("fedward.trainer")
MONOTONIC = time.monotonic
MODEL = {"base": "any", "quantization": "none"}
QUICK = {
    "model": MODEL,
    "adapter": {"rank": 4, "alpha": 8},
    "training": {"steps": 6, "batch_size": 8, "learning_rate": 0.01, "max_length": 96},
    "rounds": {"count": 4, "deadline_seconds": 600},
}


@dataclass
class RealTrainer:
    """A hospital's inbox, tasks and door, called directly."""

    site: SiteFolder
    hospital: Hospital
    killed: bool = False
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = load_site(self.site.home / "site.toml")
        settings.state.mkdir(parents=True, exist_ok=True)
        self.settings = settings
        self.ledger = Ledger(settings.trainer.ledger)
        self.outbound = Outbound(self.site.name, self.site.key, self.ledger)
        self.start()

    def start(self) -> None:
        """Begin anew, as after a kill: only what is on disk is left."""
        board = Board(self.site.name, HealthReader(self.settings.state, lambda: 0))
        self.inbox = Inbox(self.settings, self.site.coordinator.public_key(), [])
        data = LiveData(self.settings.data)
        data.look()
        self.tasks = Tasks(self.settings, data, b"k" * 32, board)

    def __call__(self, request: Request, envelope: Envelope) -> Envelope:
        """The signed answer to a signed request."""
        self.requests.append(request)
        with patch("time.monotonic", MONOTONIC):  # the study's clock stands still
            return self._answer(request, envelope)

    def _answer(self, request: Request, envelope: Envelope) -> Envelope:
        try:
            job = self.inbox.admit(envelope)
            answer = self.tasks.answer(job.request, job.payload, 0.0, job.cancel)
        except Refusal as error:
            return self._refusal(request, error.reason)
        except Exception as error:
            log.exception("not done")
            return self._refusal(request, reason_of(error))
        released = self.outbound.release(answer.reply, answer.update, request_digest=job.digest)
        job.done = True
        job.future.set_result(released)
        self.inbox.finished(job)
        return released

    def _refusal(self, request: Request, reason: Reason) -> Envelope:
        reply = Reply(
            request_id=request.request_id,
            study_id=request.study_id,
            site=self.site.name,
            task=request.task,
            round=request.round,
            reason=reason,
        )
        return seal(reply, b"", self.site.key, context="reply")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama."""
    return build_model("llama", tmp_path_factory.mktemp("engine") / "llama")


Trainers = dict[str, RealTrainer]


@pytest.fixture
def trainers(
    grid: FakeGrid,
    hospitals: dict[str, Hospital],
    federation: FederationPaths,
    tmp_path: Path,
    base: Path,
) -> Iterator[Callable[..., Trainers]]:
    """Put real trainers into the three hospitals; keywords are TOML for one site each."""
    made: Trainers = {}

    def put(**extra: str) -> Trainers:
        for number, name in enumerate(SITES):
            folder = SiteFolder(
                tmp_path / name,
                base,
                name=name,
                coordinator=load_signing_key(federation.study_signing_key),
                key=hospitals[name].key,
            )
            folder.home.mkdir()
            # Each site has its own kind of rows: drugs by its own rule.
            mine = [row for row in rows(90) if len(row["instruction"]) % 3 == number] or rows(30)
            write_jsonl(folder.home / "mine.jsonl", mine)
            write_jsonl(folder.home / "other.jsonl", rows(52)[40:])
            data = 'train = ["mine.jsonl"]\nheldout = ["other.jsonl"]'
            folder.write(data=data, extra=extra.get(name.replace("-", "_"), ""))
            trainer = RealTrainer(folder, hospitals[name])
            made[name] = trainer
            hospitals[name].behave = trainer
        return made

    yield put
    for trainer in made.values():
        trainer.ledger.close()


def of(folder: StudyFolder, kind: type[Any]) -> list[Any]:
    """The journal's events of one kind."""
    return [event for event in folder.events if isinstance(event, kind)]


def assert_learnt(folder: StudyFolder, *, rounds: int = 4, sites: int = 3) -> None:
    """Every site's update counted in every round, and the held-out loss fell."""
    assert folder.verdict is not None
    assert folder.verdict.state is StudyState.FINISHED, folder.verdict.verdict
    results: list[SiteResult] = of(folder, SiteResult)
    wrong = [(r.site, r.round, r.reason) for r in results if r.outcome is not SiteOutcome.OK]
    assert not wrong
    assert len(results) == rounds * sites
    before = np.mean([e.evaluation.loss for e in of(folder, SitePrepared) if e.evaluation])
    after = np.mean([e.evaluation.loss for e in of(folder, StudyEvaluated)])
    assert after < 0.9 * before, (before, after)


METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"aggregation": {"strategy": "fedprox", "proximal_mu": 0.1}},
    "scaffold": {"aggregation": {"strategy": "scaffold"}},
    "scaffold ffa int4": {
        "aggregation": {"strategy": "scaffold", "lora": "ffa"},
        "codec": {"up": "int8", "down": "int4"},
    },
    "ffa": {"aggregation": {"lora": "ffa"}, "codec": {"up": "int4", "error_feedback": "on"}},
    "rolora": {"aggregation": {"lora": "rolora"}},
    "flexlora": {"aggregation": {"lora": "flexlora"}, "codec": {"down": "int8"}},
    "flexlora int4": {"aggregation": {"lora": "flexlora"}, "codec": {"up": "int8", "down": "int4"}},
    "fedex": {"aggregation": {"lora": "fedex"}},
    "flora": {"aggregation": {"lora": "flora"}},
    "fednova": {"aggregation": {"normalise_steps": True}},
    "changes down": {"codec": {"up": "topk-0.1", "down": "int4"}},
    "plateau": {
        "training": QUICK["training"] | {"schedule": "plateau", "plateau_patience": 1}  # type: ignore[operator]
    },
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_in_a_whole_study(
    name: str, trainers: Callable[..., Trainers], study: StudyRunner
) -> None:
    """Each method's server and trainer halves fit: no refusal, and the held-out loss falls."""
    trainers()
    assert_learnt(study(**QUICK | METHODS[name]))


def per_round(folder: StudyFolder, number: int) -> list[SiteResult]:
    """One round's results, in order of site."""
    results = [result for result in of(folder, SiteResult) if result.round == number]
    return sorted(results, key=lambda result: str(result.site))


def test_a_frozen_factor_does_not_travel_up(
    trainers: Callable[..., Trainers], study: StudyRunner
) -> None:
    """FFA-LoRA sends B alone: the update is as many bytes as B has values times four."""
    trainers()
    folder = study(**QUICK | METHODS["ffa"] | {"codec": {}})
    manifest = checkpoint(folder).manifest
    b = sum(t.numel for t in manifest.tensors if "lora_B" in t.name)
    for result in per_round(folder, 2):
        assert 4 * b < result.bytes_up < 4 * b + 4096


def test_changes_go_down_and_the_whole_where_they_cannot(
    trainers: Callable[..., Trainers], study: StudyRunner
) -> None:
    """Only changes go down. A trainer that has lost what a change is to be added to says so, and
    has the whole in the same round."""
    made = trainers()
    lost = made["hospital-b"]

    def forgetful(request: Request, envelope: Envelope) -> Envelope:
        if request.round == 3 and not lost.settings.state.joinpath("lost-once").exists():
            shutil.rmtree(lost.settings.state / "held")
            lost.settings.state.joinpath("lost-once").touch()
            with patch("time.monotonic", MONOTONIC):
                lost.start()
        return RealTrainer.__call__(lost, request, envelope)

    lost.hospital.behave = forgetful
    folder = study(**QUICK | METHODS["changes down"])
    assert_learnt(folder)
    whole = per_round(folder, 3)[1].bytes_down - per_round(folder, 3)[0].bytes_down
    for number in (1, 2):  # not even the first goes down: it is drawn from the study's seed
        assert per_round(folder, number)[0].bytes_down < whole / 2
    rounds = [(request.round, request.change_of is not None) for request in lost.requests]
    assert [entry for entry in rounds if entry[0] == 3] == [(3, True), (3, False)]
    third = per_round(folder, 3)
    assert third[1].bytes_down > 2 * third[0].bytes_down  # both sendings are counted
    assert (4, True) in rounds


def test_a_hospital_that_missed_a_round_has_the_whole(
    trainers: Callable[..., Trainers], study: StudyRunner
) -> None:
    """Who did not answer in round 2 is not sent the change from it in round 3."""
    made = trainers()
    late = made["hospital-c"]
    late.hospital.behave = lambda request, envelope: (
        None if request.round == 2 else late(request, envelope)
    )
    folder = study(**QUICK | METHODS["changes down"])
    assert folder.verdict is not None
    assert folder.verdict.state is StudyState.FINISHED
    asked = {request.round: request.change_of is not None for request in late.requests}
    assert asked[3] is False
    assert asked[4] is True


@pytest.mark.parametrize("lora", ["factors", "flexlora", "fedex"])
def test_hospitals_of_different_rank_train_one_adapter(
    lora: str, trainers: Callable[..., Trainers], study: StudyRunner
) -> None:
    """A hospital whose limit is rank 2 takes part in a study of rank 4, for half of the bytes."""
    made = trainers(hospital_c="[limits]\nmax_rank = 2")
    folder = study(**QUICK | {"aggregation": {"lora": lora}})
    assert_learnt(folder)
    small, large = per_round(folder, 3)[2], per_round(folder, 3)[0]
    assert small.bytes_up < 0.6 * large.bytes_up
    assert {request.rank for request in made["hospital-c"].requests if request.round} == {2}
    if lora == "flexlora":
        energies = [e.captured_energy for e in of(folder, RoundFinished)]
        assert all(energy is not None and 0 < energy <= 1 for energy in energies)


def test_a_smaller_hospital_is_refused_where_ranks_cannot_differ(
    trainers: Callable[..., Trainers], study: StudyRunner
) -> None:
    """The median compares values one by one; a hospital that lacks half of them is left out."""
    trainers(hospital_c="[limits]\nmax_rank = 2")
    folder = study(**QUICK | {"aggregation": {"strategy": "median"}})
    reasons = {event.site: event.reason for event in of(folder, SitePrepared)}
    assert reasons["hospital-c"] is Reason.SITE_FORBIDS
    assert_learnt(folder, sites=2)


@pytest.mark.parametrize("lora", ["fedex", "flora"])
def test_the_written_adapter_holds_what_was_added_to_the_base(
    lora: str, trainers: Callable[..., Trainers], study: StudyRunner, base: Path
) -> None:
    """Stock PEFT on the untouched base computes what the hospitals' changed bases do; a hospital
    whose trainer was restarted has caught up with all that it missed."""
    made = trainers()
    restarted = made["hospital-b"]

    def killed(request: Request, envelope: Envelope) -> Envelope:
        if request.round == 4 and request.task is Task.TRAIN and not restarted.killed:
            restarted.killed = True
            with patch("time.monotonic", MONOTONIC):
                restarted.start()
        return RealTrainer.__call__(restarted, request, envelope)

    restarted.hospital.behave = killed
    folder = study(**QUICK | {"aggregation": {"lora": lora}})
    assert_learnt(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    written = peft.PeftModel.from_pretrained(model, str(folder.path / "adapter")).eval()
    tokens = torch.arange(3, 23)[None]
    with torch.no_grad():
        expected = written(tokens).logits
        for name in ("hospital-a", "hospital-b"):
            (resident,) = made[name].tasks.shelf.residents
            assert resident.changed
            torch.testing.assert_close(
                resident.model(tokens).logits, expected, rtol=1e-3, atol=1e-3
            )


def checkpoint(folder: StudyFolder) -> Checkpoint:
    """The study's last."""
    found = load_latest(folder.path)
    assert found is not None
    return found
