"""HAProxy's runtime API: changes lists while requests are under way, and tells how it is.

A change is prepared whole and then committed in one step, so no request sees half of it.
"""

import re
import socket
from collections.abc import Iterable
from pathlib import Path

_TIMEOUT_SECONDS = 5.0
_BATCH = 8192  # HAProxy reads a command into one buffer of 16 KiB


class RuntimeApiError(Exception):
    """HAProxy does not answer, or refuses a command."""


class Runtime:
    """The admin socket of a running HAProxy."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def command(self, text: str) -> str:
        """Send one command and read the whole answer.

        Raises:
            RuntimeApiError: the socket is not there or does not answer.
        """
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
                stream.settimeout(_TIMEOUT_SECONDS)
                stream.connect(str(self._path))
                stream.sendall(text.encode() + b"\n")
                parts = []
                while part := stream.recv(65536):
                    parts.append(part)
        except OSError as error:
            raise RuntimeApiError(f"{self._path}: {error}") from error
        return b"".join(parts).decode(errors="replace").strip()

    def replace_entries(self, kind: str, path: Path, entries: Iterable[str]) -> None:
        """Put `entries` in place of all of a list; `kind` is acl or map.

        Raises:
            RuntimeApiError: HAProxy refuses; the old entries stay in use.
        """
        answer = self.command(f"prepare {kind} {path}")
        version = re.search(r"version created: (\d+)", answer)
        if version is None:
            raise RuntimeApiError(f"{path}: HAProxy says {answer!r}")
        for batch in _batches(entries):
            if kind == "map":
                self._quiet(f"add map @{version[1]} {path} <<\n{batch}\n")
            else:
                commands = [f"add acl @{version[1]} {path} {entry}" for entry in batch.split()]
                for command in commands:
                    self._quiet(command)
        self._quiet(f"commit {kind} @{version[1]} {path}")

    def server_is_up(self, backend: str) -> bool:
        """Whether the health check of `backend` passes.

        Raises:
            RuntimeApiError: HAProxy does not answer.
        """
        rows = self.command(f"show stat {backend} 4 -1").splitlines()
        names = rows[0].lstrip("# ").split(",")
        states = [row.split(",")[names.index("status")] for row in rows[1:] if row]
        return any(state.startswith("UP") for state in states)

    def _quiet(self, command: str) -> None:
        answer = self.command(command)
        if answer:
            raise RuntimeApiError(f"{command.split('<<')[0].strip()}: HAProxy says {answer!r}")


def _batches(entries: Iterable[str]) -> Iterable[str]:
    batch: list[str] = []
    size = 0
    for entry in entries:
        if batch and size + len(entry) + 1 > _BATCH:
            yield "\n".join(batch)
            batch, size = [], 0
        batch.append(entry)
        size += len(entry) + 1
    if batch:
        yield "\n".join(batch)
