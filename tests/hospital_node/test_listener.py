"""The socket: private from the start, stale ones replaced, living ones respected."""

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hospital_node.trainer import listener
from hospital_node.trainer.listener import Listener, SocketError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the socket is to be."""
    return tmp_path / "t.sock"


@pytest.fixture
def listening(path: Path) -> Iterator[Listener]:
    """A listener that echoes one byte."""
    made = Listener(path)
    made.start(lambda stream: stream.sendall(stream.recv(1)))
    yield made
    made.close()


def echo(path: Path) -> bytes:
    """Send a byte and read the answer."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(5)
        stream.connect(str(path))
        stream.sendall(b"x")
        return stream.recv(1)


def test_only_the_owner_can_connect(listening: Listener) -> None:
    """The mode is 0600, whatever the process's umask was, and the umask is put back."""
    assert stat.S_IMODE(listening.path.stat().st_mode) == 0o600
    before = os.umask(0o022)
    os.umask(before)
    assert before != 0o177
    assert echo(listening.path) == b"x"


def test_the_name_never_has_another_mode(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode is right at the moment of bind, not after a later chmod."""
    modes: list[int] = []
    listen = socket.socket.listen

    def noting(self: socket.socket, backlog: int = 1) -> None:
        modes.append(stat.S_IMODE(path.stat().st_mode))
        listen(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", noting)
    Listener(path).close()
    assert modes == [0o600]


def test_a_dead_trainers_socket_is_replaced(path: Path) -> None:
    """What kill -9 leaves behind does not stop the next start."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    made = Listener(path)
    made.close()
    assert not path.exists()


def test_a_living_trainers_socket_is_not(listening: Listener) -> None:
    """A second trainer is told that one answers, and the first goes on."""
    with pytest.raises(SocketError, match="already answers there"):
        Listener(listening.path)
    assert echo(listening.path) == b"x"


def test_a_file_in_the_way_is_not_removed(path: Path) -> None:
    """Something that is no socket is left alone."""
    path.write_text("notes")
    with pytest.raises(SocketError, match="not a socket"):
        Listener(path)
    assert path.read_text() == "notes"


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    """The setting is named."""
    with pytest.raises(SocketError, match=r"trainer\.socket = .*cannot listen there"):
        Listener(tmp_path / "gone" / "t.sock")


def test_a_successors_socket_is_not_removed(path: Path) -> None:
    """Closing removes the file only while it is this listener's own."""
    made = Listener(path)
    path.unlink()
    successor = Listener(path)
    made.close()
    assert path.exists()
    successor.close()


def test_connections_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that opens connection after connection holds a fixed number of threads."""
    monkeypatch.setattr(listener, "_MAX_CONNECTIONS", 2)
    made = Listener(path)
    release, held = threading.Event(), threading.Semaphore(0)

    def hold(_: socket.socket) -> None:
        held.release()
        release.wait(10)

    made.start(hold)
    streams = []
    for _ in range(3):
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(5)
        stream.connect(str(path))
        streams.append(stream)
    assert held.acquire(timeout=5)
    assert held.acquire(timeout=5)
    assert streams[2].recv(1) == b"", "the third is closed at once"
    release.set()
    for stream in streams:
        stream.close()
    made.close()
