"""How the link speaks to its trainer: signed envelopes over a private Unix socket, or pinned TLS.

The link can neither write a request (it has not the coordinator's key) nor a reply (it has not the
trainer's), so all it can do with this connection is pass messages on or withhold them.
"""

import socket
import time
from pathlib import Path

from protocol.envelope import Envelope
from protocol.errors import ProtocolError, SettingsError
from protocol.framing import Kind, receive, send
from protocol.pinned import connect
from protocol.site import RemoteSettings, TrainerSettings

# A trainer that is restarted has to load its base model again: minutes for an 8B model on a slow
# disk. The round's own deadline decides when that is too long; this only ends a hopeless wait.
RESTART_SECONDS = 900.0
RETRY_SECONDS = 0.5


Where = Path | RemoteSettings
"""The trainer's Unix socket, or its address and both sides' certificates."""


class TrainerUnreachableError(Exception):
    """Nobody answers where the trainer should be."""


def trainer_of(settings: TrainerSettings) -> Where:
    """Where this site's trainer is."""
    return settings.remote or settings.socket


def exchange(
    where: Where, request: Envelope, *, restart_seconds: float = RESTART_SECONDS
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
            with _connect(where) as stream:
                alive = time.monotonic()
                send(stream, Kind.REQUEST, request)
                frame = receive(stream)
            if frame is not None and frame[0] is Kind.REPLY:
                return frame[1]
        except (OSError, ProtocolError, SettingsError):
            pass  # it is gone, or it died in the middle of a frame: ask its successor
        if time.monotonic() - alive > restart_seconds:
            raise TrainerUnreachableError(
                f"no trainer on {_name(where)} for {restart_seconds:.0f} s"
            )
        time.sleep(RETRY_SECONDS)


def status(where: Where, *, timeout: float = 5.0) -> Envelope | None:
    """Ask for the trainer's signed progress; None when it does not answer."""
    try:
        with _connect(where) as stream:
            stream.settimeout(timeout)
            send(stream, Kind.STATUS, Envelope(b"", b""))
            frame = receive(stream)
    except (OSError, ProtocolError, SettingsError):
        return None
    return frame[1] if frame is not None and frame[0] is Kind.PROGRESS else None


def _connect(where: Where) -> socket.socket:
    if isinstance(where, RemoteSettings):
        return connect(
            where.host,
            where.port,
            certificate=where.link_certificate,
            key=where.link_key,
            peer=where.trainer_certificate,
        )
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.connect(str(where))
    except OSError:
        stream.close()
        raise
    return stream


def _name(where: Where) -> str:
    return where.address if isinstance(where, RemoteSettings) else str(where)
