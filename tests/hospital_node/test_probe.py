"""Health checks of a hospital's containers: they tell the truth, and need no module of ours."""

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hospital_node import probe
from protocol.envelope import Envelope
from protocol.framing import Kind, receive, send


def forwarder(state: Path, **counters: object) -> None:
    (state / "link").mkdir(exist_ok=True)
    (state / "link" / "forwarder.json").write_text(json.dumps(counters))


def test_a_link_that_is_answered_is_well(tmp_path: Path) -> None:
    """The aggregator's last answer is a moment old."""
    forwarder(tmp_path, last_answer_at=time.time(), trouble="")
    assert probe.link(tmp_path) == ""


def test_a_silent_aggregator_shows(tmp_path: Path) -> None:
    """After a minute without an answer the link is not ready."""
    forwarder(tmp_path, last_answer_at=time.time() - 90, trouble="")
    assert "silent for 90 s" in probe.link(tmp_path)


def test_before_the_first_answer(tmp_path: Path) -> None:
    """The forwarder runs, and nobody has answered it."""
    forwarder(tmp_path, last_answer_at=0.0, trouble="")
    assert "not answered yet" in probe.link(tmp_path)


def test_a_refused_link_says_why(tmp_path: Path) -> None:
    """What the forwarder knows is what the check prints."""
    forwarder(tmp_path, last_answer_at=time.time(), trouble="this site's certificate was revoked")
    assert "revoked" in probe.link(tmp_path)


def test_a_link_that_never_joined(tmp_path: Path) -> None:
    """No trace of the aggregator is not health."""
    assert "not accepted" in probe.link(tmp_path)


def serve(path: Path, record: object) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def answer() -> None:
        stream, _ = listener.accept()
        with stream, listener:
            frame = receive(stream)
            assert frame == (Kind.STATUS, Envelope(b"", b""))
            header = record if isinstance(record, bytes) else json.dumps(record).encode()
            send(stream, Kind.PROGRESS, Envelope(header, b"s" * 64))

    threading.Thread(target=answer, daemon=True).start()


def test_a_working_trainer_is_ready(tmp_path: Path) -> None:
    """The check speaks the trainer's own frames."""
    serve(tmp_path / "trainer.sock", {"health": {"state": "idle"}})
    assert probe.trainer(tmp_path) == ""


def test_a_broken_trainer_is_alive_and_not_ready(tmp_path: Path) -> None:
    """Wrong data is no reason to restart, and every reason not to be ready."""
    record = {"health": {"state": "broken", "reason": "data_unreadable"}}
    serve(tmp_path / "trainer.sock", record)
    assert "data_unreadable" in probe.trainer(tmp_path)
    (tmp_path / "trainer.sock").unlink()
    serve(tmp_path / "trainer.sock", record)
    assert probe.alive(tmp_path) == ""


@pytest.mark.parametrize("record", [b"", b"[1]", b"null", b"{}"])
def test_garbage_is_no_health(tmp_path: Path, record: bytes) -> None:
    """Whatever is no progress record is a sentence, not a traceback."""
    serve(tmp_path / "trainer.sock", record)
    assert "does not answer" in probe.trainer(tmp_path)


def test_nobody_there(tmp_path: Path) -> None:
    """No socket: not alive."""
    assert "does not answer" in probe.alive(tmp_path)


def test_it_imports_nothing_of_ours(tmp_path: Path) -> None:
    """A check every few seconds must not load pydantic or Flower."""
    code = "import sys, hospital_node.probe; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"pydantic", "flwr", "protocol", "cryptography"} & set(loaded)


def test_exit_codes(tmp_path: Path) -> None:
    """1 and a sentence for trouble, 2 for a wrong command."""
    command = [sys.executable, "-m", "hospital_node.probe"]
    sick = subprocess.run([*command, "link", str(tmp_path)], capture_output=True, check=False)
    assert (sick.returncode, b"not accepted" in sick.stdout) == (1, True)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2
