"""Things done over and over until the aggregator stops, each in a thread of its own."""

import logging
import sqlite3
import threading
from collections.abc import Callable

import httpx

from protocol.errors import FedwardError

log = logging.getLogger(__name__)

MAX_BACKOFF = 3.0  # everything asked is on this machine, or is ours and near


class Worker(threading.Thread):
    """Calls `step` every `seconds`; after trouble it waits longer, and says the trouble once."""

    def __init__(
        self, name: str, step: Callable[[], None], seconds: float, stop: threading.Event
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._step, self._seconds, self._stop_event = step, seconds, stop
        self._trouble = ""

    def run(self) -> None:
        """Work until the stop event is set."""
        pause = self._seconds
        while not self._stop_event.wait(pause):
            trouble = self._try()
            pause = min(MAX_BACKOFF, pause * 2) if trouble else self._seconds
            if trouble != self._trouble:
                log.warning("%s: %s", self.name, trouble or "works again")
                self._trouble = trouble

    def _try(self) -> str:
        try:
            self._step()
        except (FedwardError, OSError, httpx.HTTPError, sqlite3.Error) as error:
            return str(error)
        except Exception as error:
            # A thread that ends would leave its work undone for ever, and nobody would know.
            log.exception("%s failed", self.name)
            return f"{type(error).__name__}: {error}"
        return ""
