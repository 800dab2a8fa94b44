"""Studies' events on their way to the control plane: each at least once, in order, for ever.

A control plane whose database was restored from an older backup lacks what came since. It says so
when the next event leaves a hole, and is sent all from there on. So that it also learns of studies
that have ended, each study's newest event is offered again now and then.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from protocol.files import write_atomic

from .folder import StudyFolder
from .journal import newest_event, read_journal
from .plane import ControlPlane, SequenceGapError

log = logging.getLogger(__name__)

BATCH = 500
OFFER_SECONDS = 300.0
_POSITION = "forwarded"


class Forwarder:
    """Sends what the journals have beyond the position noted beside each."""

    def __init__(
        self,
        plane: ControlPlane,
        studies: Callable[[], list[StudyFolder]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plane, self._studies, self._clock = plane, studies, clock
        self._sent: dict[str, tuple[int, int]] = {}  # position, and the journal's size at it
        self._offer_at = clock() + OFFER_SECONDS

    def step(self) -> None:
        """Send everything that is new.

        Raises:
            PlaneError: the control plane does not take it; nothing is lost by that.
        """
        studies = self._studies()
        for study in studies:
            self._forward(study)
        if self._clock() >= self._offer_at:
            self._offer_at = self._clock() + OFFER_SECONDS
            for study in studies:
                self._offer(study)

    def _forward(self, study: StudyFolder) -> None:
        journal = study.path / "events.jsonl"
        size = journal.stat().st_size if journal.exists() else 0
        position, known = self._sent.get(study.study_id, (_read(study.path), -1))
        if size == known:
            return
        while True:
            try:
                self._send(study.path, journal, position)
                break
            except SequenceGapError as gap:
                if gap.expected > position:
                    raise  # not a hole that the journal can fill
                log.warning(
                    "study %s: the control plane lacks event %d on; sending from there",
                    study.study_id,
                    gap.expected,
                )
                position = gap.expected - 1
        self._sent[study.study_id] = (_read(study.path), size)

    def _send(self, folder: Path, journal: Path, position: int) -> None:
        events = list(read_journal(journal, position))
        for start in range(0, len(events), BATCH):
            batch = events[start : start + BATCH]
            self._plane.send_events(batch)
            write_atomic(folder / _POSITION, str(batch[-1].seq).encode())

    def _offer(self, study: StudyFolder) -> None:
        """Send the newest event again; one that is missed there begins the sending anew."""
        newest = newest_event(study.path / "events.jsonl")
        if newest is None or newest.seq != self._sent.get(study.study_id, (0, 0))[0]:
            return  # its journal grew: it is sent at the next look
        try:
            self._plane.send_events([newest])
        except SequenceGapError:
            del self._sent[study.study_id]
            write_atomic(study.path / _POSITION, str(newest.seq - 1).encode())
            self._forward(study)


def _read(folder: Path) -> int:
    try:
        return int((folder / _POSITION).read_text())
    except (OSError, ValueError):
        return 0
