"""Who works on a study: a lock that the kernel lets go when its holder dies, however it dies.

Flower notices a dead ServerApp after 60 s of silence. The supervisor tries this lock and knows at
once; and two ServerApps can never work on one study.
"""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from protocol.errors import FedwardError


class HeldError(FedwardError):
    """Another process works on it."""


class Lease:
    """An exclusive lock on one file, held until the process ends or `release`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take it.

        Raises:
            HeldError: another process has it.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise HeldError(f"{self._path}: another process holds it") from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Let it go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def held_by_another(self) -> bool:
        """Whether some process has it now."""
        try:
            self.acquire()
        except HeldError:
            return True
        self.release()
        return False

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.release()
