"""kill -9, one at a time, of every kind of process in the middle of a round: the study ends."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import tomli_w

from fedward.demo import MODEL
from protocol.states import TrainerState
from server.report import report

from .conftest import Running, fedward, kill

STUDY = {
    "name": "faults",
    "model": {"base": str(MODEL), "quantization": "nf4"},
    "adapter": {"rank": 4, "alpha": 8},
    "training": {"steps": 30, "batch_size": 16, "learning_rate": 1e-3, "max_length": 128},
    "evaluation": {"max_examples": 16},
    "rounds": {"count": 7, "minimum_sites": 2, "deadline_seconds": 90},
    # Changes in both directions, with memories at both ends: the hardest to resume.
    "codec": {"up": "topk-0.1", "down": "int4"},
}


def server_app(running: Running) -> list[psutil.Process]:
    return running.processes("flwr-serverapp")


def superlink(running: Running) -> list[psutil.Process]:
    return running.processes("server.superlink")


def supernode(running: Running) -> list[psutil.Process]:
    return running.processes("hospital_node.link.supernode")


def client_app(running: Running) -> list[psutil.Process]:
    """A fork of the executor has its command line and an executor for a parent."""
    forks = running.processes("hospital_node.link.executor")
    return [one for one in forks if one.ppid() in {other.pid for other in forks}]


def trainer(running: Running) -> list[psutil.Process]:
    return running.processes("hospital_node.trainer")


VICTIMS: dict[int, Callable[[Running], list[psutil.Process]]] = {
    2: client_app,
    3: trainer,
    4: supernode,
    5: server_app,
    6: superlink,
}


@pytest.mark.timeout(600)
def test_a_study_survives_the_death_of_each_of_its_processes(
    up: Callable[..., Running], tmp_path: Path
) -> None:
    """Five kills in five rounds cost those rounds at most; the study ends and says so."""
    running = up()
    file = tmp_path / "study.toml"
    file.write_text(tomli_w.dumps(STUDY))
    fedward("run", str(file), "--detach", folder=running.folder)
    plane = running.plane
    study_id = plane.studies()[0].study_id
    for number, victims in VICTIMS.items():
        running.wait(
            f"round {number} trains",
            lambda number=number: (
                plane.study(study_id).round >= number
                and any(
                    node.progress
                    and node.progress.round >= number
                    and node.progress.health.state is TrainerState.TRAINING
                    for node in plane.nodes()
                )
            ),
            seconds=180,
        )
        found = running.wait(f"a process to kill in round {number}", lambda v=victims: v(running))
        kill(found[0])
    running.wait("the end of the study", lambda: plane.study(study_id).state.ended, seconds=300)
    result = report(plane.events(study_id))
    assert result["state"] == "finished", result["verdict"]
    assert len(result["rounds"]) == 7
    assert "interrupted" in {fault["what"] for fault in result["faults"]}
