"""What crosses the Fleet listener, counted by hospital.

HTTP bytes (start line, headers, body), which a counting TCP proxy put 0.16 % below the bytes on
the wire. Counters start with the SuperLink's process; `epoch` says when.
"""

import threading
import time
from collections import Counter
from typing import Any


class WireBook:
    """Counters of one SuperLink process."""

    def __init__(self) -> None:
        self.epoch = time.time()
        self._lock = threading.Lock()
        self._in: Counter[str] = Counter()
        self._out: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._last_pull: dict[str, float] = {}
        self._reasons: Counter[str] = Counter()

    def count(self, site: str, received: int, sent: int) -> None:
        """Bytes from and to a site."""
        with self._lock:
            self._in[site] += received
            self._out[site] += sent

    def pulled(self, site: str) -> None:
        """The site asked for messages and was answered."""
        with self._lock:
            self._last_pull[site] = time.time()

    def refused(self, reason: str, site: str = "") -> None:
        """A request that was not let through; `site` where its key is known."""
        with self._lock:
            self._reasons[reason] += 1
            if site:
                self._refused[site] += 1

    def snapshot(self) -> dict[str, Any]:
        """All of it, as JSON for the supervisor."""
        with self._lock:
            sites = self._in.keys() | self._refused.keys() | self._last_pull.keys()
            return {
                "epoch": self.epoch,
                "sites": {
                    site: {
                        "bytes_in": self._in[site],
                        "bytes_out": self._out[site],
                        "refused": self._refused[site],
                        "last_pull_at": self._last_pull.get(site),
                    }
                    for site in sorted(sites)
                },
                "refused": dict(self._reasons),
            }
