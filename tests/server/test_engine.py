"""Whole studies of real trainers: each method's two halves, over signed messages, in one process.

Only Flower is left out: letters go from hand to hand.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from conftest import SITES, FakeGrid, Hospital, StudyRunner

from certs.local import FederationPaths
from hospital_node.ledger import Ledger
from hospital_node.outbound import Outbound, reason_of
from hospital_node.trainer.board import Board
from hospital_node.trainer.data import load_rows
from hospital_node.trainer.errors import Refusal
from hospital_node.trainer.health import HealthReader
from hospital_node.trainer.inbox import Inbox
from hospital_node.trainer.tasks import Tasks
from protocol.envelope import Envelope, load_signing_key, seal
from protocol.events import SitePrepared, SiteResult, StudyEvaluated
from protocol.messages import Reply, Request
from protocol.site import load_site
from protocol.states import Reason, SiteOutcome, StudyState
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
        self.tasks = Tasks(self.settings, load_rows(self.settings.data), b"k" * 32, board)

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
            trainer = RealTrainer(folder)
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


def sizes(folder: StudyFolder, number: int) -> tuple[int, int]:
    """Bytes up and down of one round."""
    results = [r for r in of(folder, SiteResult) if r.round == number]
    return sum(r.bytes_up for r in results), sum(r.bytes_down for r in results)
