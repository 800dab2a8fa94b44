"""The link: what it passes on, what it survives and what it says."""

import email.utils
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity

from hospital_node.link import client_app, runtime_tls, supernode, trainer_client
from hospital_node.link._wake import Doorbell, ring
from protocol.envelope import Envelope
from protocol.flower_records import pack, unpack
from protocol.framing import Kind, receive, send

REQUEST = Envelope(b'{"ask": 1}', b"s" * 64, b"weights")
REPLY = Envelope(b'{"answer": 1}', b"t" * 64, b"delta")


def serve(path: Path, *answers: Envelope | None) -> threading.Thread:
    """A stand-in trainer: answers one connection after another; None hangs up without a word."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def work() -> None:
        for answer in answers:
            stream, _ = listener.accept()
            with stream:
                receive(stream)
                if answer is not None:
                    send(stream, Kind.REPLY, answer)
        listener.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def message(content: RecordDict) -> Message:
    """A message as a SuperNode would hand it to the ClientApp."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 7
    made = Message(content, dst_node_id=7, message_type="train")
    made.metadata.__dict__["_message_id"] = "m"
    return made


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "trainer.sock"
    monkeypatch.setenv(client_app.SOCKET_VARIABLE, str(path))
    monkeypatch.setattr(trainer_client, "RETRY_SECONDS", 0.01)
    return path


def test_a_message_and_its_answer_pass_unchanged(trainer: Path) -> None:
    """Header, signature and payload arrive byte for byte, in both directions."""
    serve(trainer, REPLY)
    reply = client_app.answer(message(pack(REQUEST)))
    assert unpack(reply.content) == REPLY


def test_a_trainer_that_dies_is_asked_again_when_it_is_back(trainer: Path) -> None:
    """A hang-up without an answer costs the time until the trainer is back, not the round."""
    serve(trainer, None, None, REPLY)
    assert trainer_client.exchange(trainer, REQUEST) == REPLY


def test_a_missing_trainer_is_a_reason_code(trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a trainer the aggregator is told so by a code, after a bounded wait."""
    monkeypatch.setattr(
        client_app, "exchange", lambda p, r: trainer_client.exchange(p, r, restart_seconds=0.05)
    )
    reply = client_app.answer(message(pack(REQUEST)))
    assert reply.has_error()
    assert reply.error.reason == "fedward:trainer_unreachable"


def test_exception_texts_stay_in_the_hospital(
    trainer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong in the link, the aggregator sees one of our codes and no text."""

    def fail(*_: object) -> Envelope:
        raise ValueError("John Doe, born 1950-01-01")

    monkeypatch.setattr(client_app, "exchange", fail)
    reply = client_app.answer(message(pack(REQUEST)))
    assert reply.error.reason == "fedward:link_error"


def test_a_message_that_is_none_of_ours_is_refused(trainer: Path) -> None:
    """A record without our parts does not reach the trainer."""
    reply = client_app.answer(message(RecordDict()))
    assert reply.error.reason == "fedward:malformed"


def test_the_doorbell_wakes_at_once_and_needs_nobody_at_home(tmp_path: Path) -> None:
    """A ring ends a wait within milliseconds; ringing where nobody waits is no error."""
    path = tmp_path / "bell"
    ring(path)
    bell = Doorbell(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    threading.Timer(0.05, ring, [path]).start()
    began = time.monotonic()
    bell.wait(5)
    assert 0.04 < time.monotonic() - began < 1


def test_an_idle_supernode_slows_down_and_a_reply_wakes_it() -> None:
    """Polling starts at five a second; a wait for a reply ends when the reply is there."""
    pace = supernode.Pace()
    began = time.monotonic()
    pace.sleep(supernode.IDLE_POLL_SECONDS)
    assert time.monotonic() - began < 1
    threading.Timer(0.05, pace.changed).start()
    began = time.monotonic()
    pace.sleep(0.5)
    assert 0.04 < time.monotonic() - began < 0.4


@pytest.mark.parametrize(
    ("offset", "words"),
    [(0, "not enrolled there, or was revoked"), (-400, "s ahead of"), (400, "s behind")],
)
def test_a_refused_node_says_whether_key_or_clock_is_wrong(offset: int, words: str) -> None:
    """The aggregator's Date header tells a wrong clock from an unknown key."""
    date = email.utils.formatdate(time.time() + offset, usegmt=True)
    sentence = supernode.explain_refusal(httpx.Response(401, headers={"date": date}))
    assert words in sentence


def test_a_revoked_node_says_so_and_when() -> None:
    """The guard's words tell a revocation from an unknown key; nothing else of them is believed."""
    body = {"code": "revoked", "revoked_at": "2026-03-01T12:00:00Z", "detail": "x"}
    sentence = supernode.explain_refusal(httpx.Response(401, json=body))
    assert "revoked at 2026-03-01T12:00:00Z" in sentence
    for bad in (body | {"revoked_at": "\x1b[2J now"}, body | {"code": "other"}, ["revoked"], "x"):
        assert "not enrolled there" in supernode.explain_refusal(httpx.Response(401, json=bad))


def test_a_message_that_flower_gave_up_on_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the node is idle again, no message, object or running task of an ended run is left."""
    monkeypatch.setattr(supernode.NodeState, "pace", supernode.Pace(), raising=False)
    monkeypatch.setattr(supernode.NodeState, "doorbell", tmp_path / "bell", raising=False)
    state = supernode.NodeState(ObjectStoreFactory().store())
    left = message(pack(REQUEST))
    state.store_message(left)
    task = state.create_task(TaskType.CLIENT_APP, left.metadata.run_id, fab_hash="f")
    assert task is not None
    assert state.claim_task(task) is not None
    monkeypatch.setattr(supernode, "FAST_POLL_SECONDS", 0.0)
    state.pace.sleep(supernode.IDLE_POLL_SECONDS)
    assert not state.get_messages_legacy()
    assert [found.status.status for found in state.get_tasks(task_ids=[task])] == ["finished"]


def test_a_client_app_told_to_stop_ends_even_if_its_reply_cannot_leave() -> None:
    """Flower retries a reply without end; when the SuperNode is gone too, an alarm ends it."""
    program = (
        "import signal, time\n"
        "from hospital_node.link import executor\n"
        "executor.END_SECONDS = 1\n"
        "executor._interrupt_on(signal.SIGTERM, signal.SIGINT)\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    try:\n"
        "        time.sleep(60)\n"
        "    except executor.InterruptedByEndError:\n"
        "        pass\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.wait(10) == -signal.SIGALRM


def test_the_loopback_certificate_is_private_and_for_loopback(tmp_path: Path) -> None:
    """The link's own key is readable by its owner alone."""
    certificate, key = runtime_tls.write_loopback_certificate(tmp_path)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert b"BEGIN CERTIFICATE" in certificate.read_bytes()
