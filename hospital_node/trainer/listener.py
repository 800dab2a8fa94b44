"""Where the trainer listens: a Unix socket, private from its first moment; one thread a connection.

With `trainer.remote` it listens on a TCP port too, for one peer: the holder of the link's key.

A socket file that a killed trainer left behind is removed only when nobody answers on it.
"""

import contextlib
import logging
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from protocol.errors import FedwardError, SettingsError
from protocol.pinned import accept
from protocol.site import RemoteSettings

log = logging.getLogger("fedward.trainer")

# The link has one connection a request and one a status query.
_MAX_CONNECTIONS: Final = 32
# A peer that stops in the middle of a frame gives its connection back after this.
_STALLED_SECONDS: Final = 120.0


class SocketError(FedwardError):
    """The socket cannot be made."""


class _Accepting:
    """A listening socket whose connections are served by a thread each."""

    def __init__(self, listening: socket.socket) -> None:
        self._socket = listening
        self._slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)

    def start(self, handle: Callable[[socket.socket], None]) -> None:
        """Accept connections in the background; each is handed to `handle` and closed after it."""
        threading.Thread(target=self._accept, args=(handle,), name="listener", daemon=True).start()

    def close(self) -> None:
        """Stop accepting."""
        self._socket.close()

    def secured(self, stream: socket.socket) -> socket.socket:
        """The connection once it is known who is there.

        Raises:
            OSError: it is not who should be there.
        """
        return stream

    def _accept(self, handle: Callable[[socket.socket], None]) -> None:
        while True:
            try:
                stream, _ = self._socket.accept()
            except OSError:
                return  # closed
            if not self._slots.acquire(blocking=False):
                log.warning("more than %d connections; one is refused", _MAX_CONNECTIONS)
                stream.close()
                continue
            threading.Thread(
                target=self._serve, args=(stream, handle), name="connection", daemon=True
            ).start()

    def _serve(self, stream: socket.socket, handle: Callable[[socket.socket], None]) -> None:
        try:
            with self.secured(stream) as peer:
                peer.settimeout(_STALLED_SECONDS)
                handle(peer)
        except (OSError, SettingsError) as error:
            log.warning("a connection is refused: %s", error)
        finally:
            self._slots.release()


class Listener(_Accepting):
    """A listening socket of mode 0600."""

    def __init__(self, path: Path) -> None:
        """Bind `path`.

        Raises:
            SocketError: another trainer answers there, something else is there, or the folder
                cannot be written.
        """
        self.path = path
        _remove_stale(path)
        super().__init__(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        # The mode is right when the name appears, not a moment later.
        before = os.umask(0o177)
        try:
            self._socket.bind(str(path))
            self._inode = path.stat().st_ino
            self._socket.listen(_MAX_CONNECTIONS)
        except OSError as error:
            self._socket.close()
            raise SocketError(
                f"trainer.socket = {path}: cannot listen there: {error.strerror or error}"
            ) from error
        finally:
            os.umask(before)

    def close(self) -> None:
        """Stop accepting and remove the socket file, if it is still this one."""
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        super().close()


class RemoteListener(_Accepting):
    """A TCP port for a link in another pod; whoever is not that link gets no byte."""

    def __init__(self, settings: RemoteSettings) -> None:
        """Bind the port on every address: in a pod there is one, and a policy guards it.

        Raises:
            SocketError: the port cannot be had.
        """
        self._settings = settings
        try:
            super().__init__(
                socket.create_server(
                    ("", settings.port), family=socket.AF_INET, backlog=_MAX_CONNECTIONS
                )
            )
        except OSError as error:
            raise SocketError(
                f"trainer.remote.address = {settings.address!r}: cannot listen on port "
                f"{settings.port}: {error.strerror or error}"
            ) from error

    def secured(self, stream: socket.socket) -> socket.socket:
        """The connection once its peer has shown the link's certificate and key."""
        settings = self._settings
        return accept(
            stream,
            certificate=settings.trainer_certificate,
            key=settings.trainer_key,
            peer=settings.link_certificate,
        )


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketError(
            f"trainer.socket = {path}: cannot look there: {error.strerror or error}"
        ) from error
    if not stat.S_ISSOCK(mode):
        raise SocketError(f"trainer.socket = {path}: there is a file that is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise SocketError(
                f"trainer.socket = {path}: cannot tell whether a trainer is there: "
                f"{error.strerror or error}"
            ) from error
    raise SocketError(f"trainer.socket = {path}: a trainer already answers there; a site runs one")
