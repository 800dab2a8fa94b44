"""One study's folder: the files by which the supervisor and the ServerApp speak to each other.

study.json         settings, written once by the supervisor
events.jsonl       the journal, written by both
runs.json          the Flower runs that worked on it, written by the supervisor
lease              held by the ServerApp while it works
stop               made by the supervisor: end soon, and in order
verdict.json       how it ended, written by the ServerApp; the supervisor adds Flower's byte
                   totals and closes the journal
checkpoint-*       see `checkpoint`
adapter/           the result, in PEFT's layout
report.json        see `report`
reserve            bytes that are given back to the disk when it is full, so that the verdict
                   can still be written
"""

import contextlib
import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError

from protocol.errors import FedwardError, SettingsError
from protocol.events import Event, StudyEnded
from protocol.files import write_atomic
from protocol.messages import Count, Frozen
from protocol.states import StudyState
from protocol.study import StudySettings

from .journal import Journal, read_journal
from .lease import Lease

RESERVE_BYTES = 1 << 20

Result = TypeVar("Result")


class Verdict(Frozen):
    """The study's own word on how it went."""

    state: StudyState
    rounds: Count
    verdict: str = Field(max_length=500)


class Runs(Frozen):
    """Flower runs of the study, the last one current; `started` are those whose work began."""

    ids: tuple[int, ...] = ()
    submitted_at: float = 0.0


@dataclass(frozen=True)
class StudyFolder:
    """The folder of study `study_id`."""

    path: Path
    study_id: str

    def create(self, settings: StudySettings) -> bool:
        """Make the folder for a new study; False: it is there already."""
        if (self.path / "study.json").exists():
            return False
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path / "study.json", settings.model_dump_json(indent=1).encode())
        return True

    @property
    def settings(self) -> StudySettings:
        """What the coordinator asked for.

        Raises:
            SettingsError: missing or damaged.
        """
        path = self.path / "study.json"
        try:
            return StudySettings.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise SettingsError(f"{path}: not a study's settings: {error}") from error

    @property
    def journal(self) -> Journal:
        """The journal, to append to."""
        return Journal(self.path, self.study_id)

    @property
    def events(self) -> list[Event]:
        """What has happened."""
        return list(read_journal(self.path / "events.jsonl"))

    @property
    def ended(self) -> bool:
        """Whether the journal is closed."""
        events = self.events
        return bool(events) and isinstance(events[-1], StudyEnded)

    @property
    def lease(self) -> Lease:
        """Who works on it."""
        return Lease(self.path / "lease")

    @property
    def runs(self) -> Runs:
        """The Flower runs so far."""
        return _read(self.path / "runs.json", Runs) or Runs()

    def write_runs(self, runs: Runs) -> None:
        """Remember the Flower runs."""
        write_atomic(self.path / "runs.json", runs.model_dump_json().encode())

    @property
    def verdict(self) -> Verdict | None:
        """How it ended; None while it has not."""
        return _read(self.path / "verdict.json", Verdict)

    def write_verdict(self, verdict: Verdict) -> None:
        """Say how it ended, also on a full disk."""
        data = verdict.model_dump_json().encode()
        self.with_reserve(lambda: write_atomic(self.path / "verdict.json", data))

    @property
    def stop_asked(self) -> bool:
        """Whether a person wants it to end."""
        return (self.path / "stop").exists()

    def ask_to_stop(self) -> None:
        """Want it to end."""
        (self.path / "stop").touch()

    def make_reserve(self) -> None:
        """Set bytes aside; a disk that is full already says so here.

        Raises:
            FedwardError: there is no room.
        """
        try:
            if not (self.path / "reserve").exists():
                write_atomic(self.path / "reserve", bytes(RESERVE_BYTES))
        except OSError as error:
            raise FedwardError(
                f"{self.path}: cannot be written: {error.strerror or error}; free some space there"
            ) from error

    def with_reserve(self, write: Callable[[], Result]) -> Result:
        """Call `write`; if the disk is full, give it the reserve and call it again."""
        try:
            return write()
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            with contextlib.suppress(OSError):
                (self.path / "reserve").unlink(missing_ok=True)
            return write()


Model = TypeVar("Model", bound=Frozen)


def _read(path: Path, model: type[Model]) -> Model | None:
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise SettingsError(f"{path}: damaged: {error}") from error
