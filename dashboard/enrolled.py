"""The registry of enrolled hospitals, read again when enrolment writes it."""

import logging
import threading
from pathlib import Path

from protocol.errors import SettingsError
from protocol.registry import Registry, load_registry

log = logging.getLogger(__name__)


class Enrolled:
    """The registry as it is on disk now; one that cannot be read leaves the last one in force.

    Raises:
        SettingsError: at the start, when there is no last one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp = self._stat()
        self._registry = load_registry(path)
        self.trouble = ""

    def registry(self) -> Registry:
        """The hospitals, with their public keys."""
        with self._lock:
            stamp = self._stat()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._registry = load_registry(self._path)
                    self.trouble = ""
                except SettingsError as error:
                    self.trouble = str(error)
                    log.error("%s; the last good one stays in force", error)
            return self._registry

    def _stat(self) -> tuple[int, int, int]:
        try:
            state = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return (state.st_mtime_ns, state.st_size, state.st_ino)
