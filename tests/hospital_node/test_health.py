"""Health: real figures of this machine, in the message's bounds."""

from pathlib import Path

import pytest

from hospital_node.outbound import SOFTWARE
from hospital_node.trainer import health
from hospital_node.trainer.board import Board
from hospital_node.trainer.health import HealthReader, software
from protocol.messages import Gpu, Task
from protocol.states import TrainerState

from .lab import request, study


def test_figures_are_this_machines(tmp_path: Path) -> None:
    """Memory and disk have sizes, the load is a fraction, and the counter is passed on."""
    found = HealthReader(tmp_path, lambda: 3).read(TrainerState.IDLE)
    assert 0 < found.memory_used_bytes < found.memory_total_bytes
    assert 0 < found.disk_free_bytes < found.disk_total_bytes
    assert found.cpu is not None
    assert (found.base_loads, found.state) == (3, TrainerState.IDLE)


def test_the_software_line_passes_the_door() -> None:
    """What we say of ourselves is names and versions, as the door demands."""
    assert SOFTWARE.fullmatch(software())
    assert "torch " in software()


def test_figures_are_read_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that asks without pause does not make the trainer query its GPU without pause."""
    calls: list[int] = []

    def gpus() -> tuple[Gpu, ...]:
        calls.append(1)
        return (Gpu(index=0, memory_used_bytes=1, memory_total_bytes=2),)

    monkeypatch.setattr(health, "_gpus", gpus)
    reader = HealthReader(tmp_path, lambda: 0)
    states = [reader.read(state).state for state in TrainerState]
    assert states == list(TrainerState), "the state is always the newest"
    assert len(calls) == 1
    assert reader.read(TrainerState.IDLE).gpus[0].memory_total_bytes == 2


def test_the_board_follows_the_work(tmp_path: Path) -> None:
    """What, which round, which step, how fast; and nothing of it when idle."""
    board = Board("north", HealthReader(tmp_path, lambda: 0))
    assert board.progress().health.state is TrainerState.STARTING
    board.begin(request(Task.TRAIN, study()))
    board.enter(TrainerState.TRAINING, 10)
    board.step(1, loss=2.5, tokens=100)
    found = board.progress()
    assert (found.study_id, found.task, found.round) == ("trial-1", Task.TRAIN, 1)
    assert (found.step, found.steps, found.loss) == (1, 10, 2.5)
    assert found.tokens_per_second > 0
    board.idle()
    idle = board.progress()
    assert (idle.study_id, idle.step, idle.loss) == (None, 0, None)
