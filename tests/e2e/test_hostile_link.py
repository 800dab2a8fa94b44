"""A link that was taken over: whatever runs there, the trainer gives it nothing but its due."""

import contextlib
import json
import socket
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hospital_node.link import trainer_client
from protocol.envelope import Envelope, seal
from protocol.framing import Kind, receive, send
from protocol.messages import Reply, Request, Task
from protocol.site import load_site
from protocol.study import StudySettings

from .conftest import Running

pytestmark = pytest.mark.timeout(900)  # the first test may wait for the whole demo

SECRET_WORDS = ("patient", "instruction", "/etc", "train.jsonl", "Traceback", "Error")


@pytest.fixture(scope="module")
def trainer_socket(demo: tuple[Running, dict[str, object], str]) -> Path:
    running, _, _ = demo
    site = load_site(running.federation.layout.site("st-mary") / "site.toml")
    return site.trainer.socket


def ask(path: Path, envelope: Envelope, kind: Kind = Kind.REQUEST) -> Envelope | None:
    """What a trainer answers to one frame."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(30)
        stream.connect(str(path))
        send(stream, kind, envelope)
        frame = receive(stream)
        return frame[1] if frame else None


def request(**changes: object) -> Request:
    return Request.model_validate(
        {
            "request_id": "ab" * 16,
            "study_id": "steal-000000",
            "site": "st-mary",
            "task": Task.PREPARE,
            "round": 0,
            "settings": StudySettings.model_validate(
                {"name": "steal", "model": {"base": "/etc"}}
            ).model_dump(),
            "want_initial": True,
            **changes,
        }
    )


def test_a_request_not_signed_by_the_coordinator_gets_a_code(trainer_socket: Path) -> None:
    """A hostile app can write a request; without the coordinator's key it gets a refusal."""
    answer = ask(trainer_socket, seal(request(), b"", Ed25519PrivateKey.generate(),
                                      context="request"))  # fmt: skip
    assert answer is not None
    reply = Reply.model_validate_json(answer.header)
    assert reply.reason == "bad_signature"
    assert answer.payload == b""


@pytest.mark.parametrize(
    "body",
    [
        {"op": "read", "path": "/etc/passwd"},
        {"task": "dump", "files": ["train.jsonl"]},
        {**json.loads(request().model_dump_json()), "extra": {"files": ["train.jsonl"]}},
        {**json.loads(request().model_dump_json()), "task": "shell"},
    ],
)
def test_asking_for_files_gets_nothing(trainer_socket: Path, body: dict[str, object]) -> None:
    """There is no message that names a file, and an unknown field or task is refused."""
    answer = ask(trainer_socket, Envelope(json.dumps(body).encode(), b"x" * 64))
    if answer is not None:
        text = answer.header.decode()
        assert '"reason"' in text
        assert answer.payload == b""
        assert not [word for word in SECRET_WORDS if word in text]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 64,
        struct.pack(">BIHQ", 1, 2**32 - 1, 65535, 2**63),
        struct.pack(">BIHQ", 9, 0, 0, 0),
        struct.pack(">BIHQ", 1, 10, 64, 0) + b"short",
    ],
)
def test_garbage_on_the_socket_gets_nothing_and_harms_nothing(
    trainer_socket: Path, data: bytes
) -> None:
    """Broken frames close the connection; the trainer goes on answering."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(10)
        stream.connect(str(trainer_socket))
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):  # closed with our bytes unread
            assert stream.recv(1000) == b""
    assert trainer_client.status(trainer_socket) is not None


def test_the_link_process_cannot_forge_a_reply(
    demo: tuple[Running, dict[str, object], str],
) -> None:
    """The trainer's signing key is not among the files that the link is given."""
    running, _, _ = demo
    command = " ".join(
        word
        for process in running.processes("hospital_node.link.")
        for word in [*process.cmdline(), *process.environ().values()]
    )
    assert "signing.key" not in command
    assert ".jsonl" not in command
