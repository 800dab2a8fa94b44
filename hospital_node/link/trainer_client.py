"""How the link speaks to its trainer: signed envelopes over a private Unix socket.

The link can neither write a request (it has not the coordinator's key) nor a reply (it has not the
trainer's), so all it can do with this socket is pass messages on or withhold them.
"""

import socket
import time
from pathlib import Path

from protocol.envelope import Envelope
from protocol.errors import ProtocolError
from protocol.framing import Kind, receive, send

# A trainer that is restarted has to load its base model again: minutes for an 8B model on a slow
# disk. The round's own deadline decides when that is too long; this only ends a hopeless wait.
RESTART_SECONDS = 900.0
RETRY_SECONDS = 0.5


class TrainerUnreachableError(Exception):
    """Nobody answers on the trainer's socket."""


def exchange(
    path: Path, request: Envelope, *, restart_seconds: float = RESTART_SECONDS
) -> Envelope:
    """Hand `request` to the trainer and wait for its reply.

    If the trainer dies meanwhile, the same request is handed to its successor; a trainer answers a
    request it has already answered from memory, so asking twice is safe.

    Raises:
        TrainerUnreachableError: nobody has listened for `restart_seconds`.
    """
    alive = time.monotonic()
    while True:
        try:
            with _connect(path) as stream:
                alive = time.monotonic()
                send(stream, Kind.REQUEST, request)
                frame = receive(stream)
            if frame is not None and frame[0] is Kind.REPLY:
                return frame[1]
        except (OSError, ProtocolError):
            pass  # it is gone, or it died in the middle of a frame: ask its successor
        if time.monotonic() - alive > restart_seconds:
            raise TrainerUnreachableError(f"no trainer on {path} for {restart_seconds:.0f} s")
        time.sleep(RETRY_SECONDS)


def status(path: Path, *, timeout: float = 5.0) -> Envelope | None:
    """Ask for the trainer's signed progress; None when it does not answer."""
    try:
        with _connect(path) as stream:
            stream.settimeout(timeout)
            send(stream, Kind.STATUS, Envelope(b"", b""))
            frame = receive(stream)
    except (OSError, ProtocolError):
        return None
    return frame[1] if frame is not None and frame[0] is Kind.PROGRESS else None


def _connect(path: Path) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.connect(str(path))
    except OSError:
        stream.close()
        raise
    return stream
