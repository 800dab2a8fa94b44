"""The site's rows as they are now: read at the start, and again when a file has changed.

A trainer without rows does not end: it answers, says why, and goes on by itself when they are back.
"""

import logging

from protocol.site import DataSettings
from protocol.states import Reason

from .data import Rows, load_rows
from .errors import Refusal

log = logging.getLogger("fedward.trainer")

Stamps = tuple[tuple[int, int], ...]


class LiveData:
    """A site's rows, or the reason why there are none; one thread uses it."""

    def __init__(self, settings: DataSettings) -> None:
        self.trouble: Reason | None = None
        self._settings = settings
        self._rows: Rows | None = None
        self._stamps: Stamps = ()

    @property
    def rows(self) -> Rows:
        """What was read last.

        Raises:
            Refusal: nothing could be read yet.
        """
        if self._rows is None:
            raise Refusal(self.trouble or Reason.DATA_UNREADABLE, "the data were not read yet")
        return self._rows

    def look(self) -> Rows:
        """Read the files again if one has changed, or if they could not be read.

        Raises:
            Refusal: as `load_rows`; it is also kept as `trouble`.
        """
        stamps = self._stamp()
        if self.trouble is None and self._rows is not None and stamps == self._stamps:
            return self._rows
        try:
            self._rows, self._stamps = load_rows(self._settings), stamps
        except Refusal as error:
            if self.trouble is not error.reason:
                log.error("%s", error)
            self.trouble = error.reason
            raise
        if self.trouble is not None:
            log.info("the data can be read again")
        self.trouble = None
        return self._rows

    def _stamp(self) -> Stamps:
        """Size and time of change of each data file; (0, 0) for one that is gone."""
        stamps = []
        for path in (*self._settings.train, *self._settings.heldout):
            try:
                stat = path.stat()
                stamps.append((stat.st_size, stat.st_mtime_ns))
            except OSError:
                stamps.append((0, 0))
        return tuple(stamps)
