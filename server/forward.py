"""Studies' events on their way to the control plane: each at least once, in order, for ever."""

import logging
from collections.abc import Callable
from pathlib import Path

from protocol.files import write_atomic

from .folder import StudyFolder
from .journal import read_journal
from .plane import ControlPlane

log = logging.getLogger(__name__)

BATCH = 500
_POSITION = "forwarded"


class Forwarder:
    """Sends what the journals have beyond the position noted beside each."""

    def __init__(self, plane: ControlPlane, studies: Callable[[], list[StudyFolder]]) -> None:
        self._plane, self._studies = plane, studies
        self._sent: dict[str, tuple[int, int]] = {}  # position, and the journal's size at it

    def step(self) -> None:
        """Send everything that is new.

        Raises:
            PlaneError: the control plane does not take it; nothing is lost by that.
        """
        for study in self._studies():
            self._forward(study)

    def _forward(self, study: StudyFolder) -> None:
        journal = study.path / "events.jsonl"
        size = journal.stat().st_size if journal.exists() else 0
        position, known = self._sent.get(study.study_id, (_read(study.path), -1))
        if size == known:
            return
        events = list(read_journal(journal, position))
        for start in range(0, len(events), BATCH):
            batch = events[start : start + BATCH]
            self._plane.send_events(batch)
            position = batch[-1].seq
            write_atomic(study.path / _POSITION, str(position).encode())
        self._sent[study.study_id] = (position, size)


def _read(folder: Path) -> int:
    try:
        return int((folder / _POSITION).read_text())
    except (OSError, ValueError):
        return 0
