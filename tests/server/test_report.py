"""The report is a function of the journal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.events import StudyEnded, StudyInterrupted
from protocol.messages import Request, Task
from protocol.states import Reason, StudyState
from server.folder import StudyFolder
from server.report import report, write_report


@pytest.fixture
def told(study: Callable[..., StudyFolder], hospitals: dict[str, Any]) -> StudyFolder:
    """A study in which one hospital failed once and the ServerApp once."""
    hospital = hospitals["hospital-b"]

    def behave(request: Request, sent: Any) -> Any:
        if request.task is Task.TRAIN and request.round == 2:
            return hospital.refusal(request, Reason.OUT_OF_MEMORY)
        return hospital.truth(request, sent)

    hospital.behave = behave
    folder = study(evaluation={"lone_baseline": True})
    folder.journal.append(StudyInterrupted, last_round=3, cause="a test")
    folder.journal.append(
        StudyEnded, state=StudyState.FINISHED, rounds=3, verdict="done", flower_bytes_in=7
    )
    return folder


def test_report_tells_everything(told: StudyFolder) -> None:
    """Sites, rounds, accuracies, bytes in both directions, seconds split, and the faults."""
    made = report(told.events)
    assert made["state"] == "finished"
    assert sorted(made["sites"]) == ["hospital-a", "hospital-b", "hospital-c"]
    assert [row["sites_ok"] for row in made["rounds"]] == [3, 2, 3]
    assert made["rounds_aggregated"] == 3
    assert made["accuracy"]["federated"] > made["accuracy"]["base"]
    assert len(made["accuracy"]["lone"]) == 3
    assert made["bytes"]["flower_in"] == 7
    assert made["bytes"]["up"] == sum(site["bytes"]["up"] for site in made["sites"].values())
    assert all(site["bytes"]["up"] > site["bytes"]["raw_up"] > 0 for site in made["sites"].values())
    seconds = made["seconds_per_round"]
    assert seconds["training"] == pytest.approx(1.0)
    assert [(fault["what"], fault.get("site"), fault["cause"]) for fault in made["faults"]] == [
        ("failed", "hospital-b", "out_of_memory"),
        ("interrupted", None, "a test"),
    ]


def test_report_is_written_as_json(told: StudyFolder) -> None:
    """The file is the report."""
    path: Path = write_report(told.path, told.events)
    assert json.loads(path.read_text()) == json.loads(json.dumps(report(told.events)))


def test_empty_journal_has_a_report() -> None:
    """A study that has not begun can be reported on."""
    assert report([])["rounds"] == []
