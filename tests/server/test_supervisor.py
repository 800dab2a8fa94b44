"""The supervisor: from queued to ended, over a SuperLink in memory."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.control import Command
from protocol.events import StudyEnded, StudyInterrupted, StudyQueued, StudyStarted
from protocol.states import StudyState
from protocol.study import StudySettings
from server._flower import FlowerRun
from server.commands import CommandReader
from server.folder import StudyFolder, Verdict
from server.forward import Forwarder
from server.settings import AggregatorSettings, load_aggregator
from server.supervisor import Supervisor

STUDY = StudySettings.model_validate({"name": "trial", "model": {"base": "some/base"}})


class FakeControl:
    """The Control API: runs are pending until somebody changes that."""

    def __init__(self) -> None:
        self.runs: dict[int, FlowerRun] = {}
        self.stopped: list[int] = []

    def start(self, fab: bytes, run_config: dict[str, Any]) -> int:
        """Take a run."""
        number = len(self.runs) + 1
        self.runs[number] = FlowerRun(number, "running", "", bytes_in=10, bytes_out=20)
        return number

    def run(self, run_id: int) -> FlowerRun | None:
        """Its status."""
        return self.runs.get(run_id)

    def stop(self, run_id: int) -> None:
        """Stop it."""
        self.stopped.append(run_id)


@pytest.fixture
def settings(write_aggregator: Callable[..., Path], tmp_path: Path) -> AggregatorSettings:
    """An aggregator with an empty state."""
    loaded = load_aggregator(write_aggregator(tmp_path))
    loaded.studies.mkdir(parents=True)
    return loaded


@pytest.fixture
def control() -> FakeControl:
    """A SuperLink that does nothing by itself."""
    return FakeControl()


@pytest.fixture
def supervisor(settings: AggregatorSettings, control: FakeControl) -> Supervisor:
    """A supervisor of that SuperLink."""
    return Supervisor(settings, control)  # type: ignore[arg-type]


def queued(settings: AggregatorSettings, study_id: str = "trial-1") -> StudyFolder:
    """A study that was submitted."""
    folder = StudyFolder(settings.study(study_id), study_id)
    folder.create(STUDY)
    folder.journal.append(StudyQueued, settings=STUDY)
    return folder


def died(folder: StudyFolder) -> None:
    """A ServerApp began on the current run and is gone."""
    folder.journal.append(StudyStarted, flower_run_id=str(folder.runs.ids[-1]))


def steps(supervisor: Supervisor, count: int = 3) -> None:
    """Look a few times."""
    for _ in range(count):
        supervisor.step()


def test_submitted_once(
    supervisor: Supervisor, control: FakeControl, settings: AggregatorSettings
) -> None:
    """A queued study is submitted, and not again while it has not begun."""
    folder = queued(settings)
    steps(supervisor)
    assert folder.runs.ids == (1,)
    assert len(control.runs) == 1


def test_dead_server_app_is_replaced(
    supervisor: Supervisor, control: FakeControl, settings: AggregatorSettings
) -> None:
    """A study whose lease is free without a verdict is interrupted and submitted again."""
    folder = queued(settings)
    steps(supervisor)
    died(folder)
    steps(supervisor)
    assert folder.runs.ids == (1, 2)
    assert sum(isinstance(event, StudyInterrupted) for event in folder.events) == 1


def test_living_server_app_is_left_alone(
    supervisor: Supervisor, settings: AggregatorSettings
) -> None:
    """While the lease is held nothing is done, whatever Flower says."""
    folder = queued(settings)
    steps(supervisor)
    died(folder)
    with folder.lease:
        steps(supervisor)
    assert folder.runs.ids == (1,)


def test_gives_up_after_attempts(
    supervisor: Supervisor,
    control: FakeControl,
    settings: AggregatorSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A study that dies ten times without a finished round fails, with the last cause."""
    folder = queued(settings)
    now = time.time()
    for _ in range(40):
        now += 100
        monkeypatch.setattr("server.supervisor.time.time", lambda now=now: now)
        supervisor.step()
        if folder.ended:
            break
        if folder.runs.ids and not isinstance(folder.events[-1], StudyInterrupted | StudyStarted):
            died(folder)
    end = folder.events[-1]
    assert isinstance(end, StudyEnded)
    assert end.state is StudyState.FAILED
    assert "10 times in a row" in end.verdict


def test_verdict_closes_the_journal(
    supervisor: Supervisor, control: FakeControl, settings: AggregatorSettings
) -> None:
    """The ServerApp's verdict becomes StudyEnded with Flower's totals, and a report is written."""
    folder = queued(settings)
    steps(supervisor)
    died(folder)
    folder.write_verdict(Verdict(state=StudyState.FINISHED, rounds=3, verdict="well"))
    control.runs[1] = FlowerRun(1, "finished", "completed", bytes_in=10, bytes_out=20)
    steps(supervisor)
    end = folder.events[-1]
    assert isinstance(end, StudyEnded)
    assert (end.flower_bytes_in, end.flower_bytes_out) == (10, 20)
    assert (folder.path / "report.json").exists()


def test_one_at_a_time(
    supervisor: Supervisor, control: FakeControl, settings: AggregatorSettings
) -> None:
    """The second study waits for the first to end."""
    first = queued(settings, "trial-1")
    second = queued(settings, "trial-2")
    steps(supervisor)
    assert not second.runs.ids
    died(first)
    first.write_verdict(Verdict(state=StudyState.FINISHED, rounds=3, verdict="well"))
    control.runs[1] = FlowerRun(1, "finished", "completed", bytes_in=0, bytes_out=0)
    steps(supervisor)
    assert second.runs.ids == (2,)


def test_stop_before_it_begins(supervisor: Supervisor, settings: AggregatorSettings) -> None:
    """A queued study that is stopped ends without a run of its own."""
    queued(settings, "trial-1")
    second = queued(settings, "trial-2")
    second.ask_to_stop()
    steps(supervisor)
    assert not second.runs.ids
    end = second.events[-1]
    assert isinstance(end, StudyEnded)
    assert end.state is StudyState.STOPPED


class FakePlane:
    """A control plane that can be away."""

    def __init__(self) -> None:
        self.away = False
        self.events: list[Any] = []
        self.orders: list[Command] = []

    def send_events(self, events: list[Any]) -> None:
        """Take events."""
        if self.away:
            raise OSError("away")
        self.events.extend(events)

    def commands(self, after: int) -> list[Command]:
        """Hand out orders."""
        return [command for command in self.orders if command.id > after]


def test_events_survive_a_control_plane_that_is_away(
    supervisor: Supervisor, settings: AggregatorSettings
) -> None:
    """Nothing is lost while it is away, and nothing is sent twice by one that keeps its place."""
    plane = FakePlane()
    folder = queued(settings)
    plane.away = True
    with pytest.raises(OSError, match="away"):
        Forwarder(plane, supervisor.studies).step()  # type: ignore[arg-type]
    plane.away = False
    forwarder = Forwarder(plane, supervisor.studies)  # type: ignore[arg-type]
    forwarder.step()
    folder.journal.append(StudyInterrupted, last_round=0, cause="x")
    forwarder.step()
    Forwarder(plane, supervisor.studies).step()  # type: ignore[arg-type]
    assert [event.seq for event in plane.events] == [1, 2]


def test_commands_are_done_once(settings: AggregatorSettings) -> None:
    """A command that was done is not done again by the next process."""
    plane = FakePlane()
    plane.orders = [Command(id=1, action="start", study_id="trial-1", settings=STUDY)]

    def study(study_id: str) -> StudyFolder:
        return StudyFolder(settings.study(study_id), study_id)

    for _ in range(2):
        CommandReader(plane, settings.state / "commands", study).step()  # type: ignore[arg-type]
    assert len(study("trial-1").events) == 1
    plane.orders.append(Command(id=2, action="stop", study_id="trial-1"))
    CommandReader(plane, settings.state / "commands", study).step()  # type: ignore[arg-type]
    assert study("trial-1").stop_asked
