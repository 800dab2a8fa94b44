"""A doorbell between the SuperNode and the executor, so that neither has to poll the other fast.

Flower's SuperExec asks for work every second (or as often as it is told, at about 6 ms of CPU a
question). Both processes are ours to start, so the SuperNode rings when work arrives.
"""

import contextlib
import select
import socket
from pathlib import Path


class Doorbell:
    """The waiting end: a Unix datagram socket at `path`."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        path.chmod(0o600)
        self._socket.setblocking(False)

    def wait(self, seconds: float) -> None:
        """Return when somebody rang, or after `seconds`."""
        select.select([self._socket], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(1):
                pass


def ring(path: Path) -> None:
    """Wake whoever waits at `path`; nobody waiting is not an error."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
        bell.setblocking(False)
        bell.sendto(b"!", str(path))
