"""A study's journal: one JSON line for each event, numbered without holes.

Two processes write it, the ServerApp and the supervisor, and either can be killed at any byte. So
each append takes a lock, looks where the file really ends, cuts off a torn last line, and syncs
before it returns. What is in the journal has happened; what is not has not.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from protocol.errors import FedwardError
from protocol.events import EVENT, Event, StudyEnded

FILE = "events.jsonl"

Kind = TypeVar("Kind", bound=Event)


class JournalError(FedwardError):
    """The journal is damaged before its last line, or another study's."""


class StudyOverError(FedwardError):
    """The study has ended: nothing more is written about it."""


class Journal:
    """The events of one study, in `folder`."""

    def __init__(self, folder: Path, study_id: str) -> None:
        self.path = folder / FILE
        self.study_id = study_id
        self._lock_path = folder / f".{FILE}.lock"
        self._end = 0  # bytes known to be whole lines
        self._seq = 0
        self._ended = False

    def append(self, kind: type[Kind], **fields: Any) -> Kind:
        """Write one event; `study_id`, `seq` and `at` are filled in.

        Raises:
            StudyOverError: the study has its `StudyEnded`.
            OSError: the disk is full or the folder is gone; the journal is as it was.
        """
        with self._locked(), self._open() as descriptor:
            self._catch_up(descriptor)
            if self._ended:
                raise StudyOverError(f"study {self.study_id} has ended")
            event = kind(study_id=self.study_id, seq=self._seq + 1, at=time.time(), **fields)
            line = event.model_dump_json(exclude_none=True).encode() + b"\n"
            try:
                _write(descriptor, line, self._end)
            except OSError:
                os.ftruncate(descriptor, self._end)
                raise
            self._took(event, len(line))
            return event

    def read(self, after: int = 0) -> list[Event]:
        """The events with a number above `after`; a torn last line is not one."""
        return list(read_journal(self.path, after))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock_path.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _open(self) -> Iterator[int]:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _catch_up(self, descriptor: int) -> None:
        """Read what another process appended, and cut off what a kill left half written."""
        size = os.fstat(descriptor).st_size
        if size < self._end:
            raise JournalError(f"{self.path}: is shorter than it was; it must not be edited")
        tail = os.pread(descriptor, size - self._end, self._end)
        whole = tail.rfind(b"\n") + 1
        for line in tail[:whole].splitlines(keepends=True):
            event = _parse(line, self.path)
            if event.seq != self._seq + 1 or event.study_id != self.study_id:
                raise JournalError(
                    f"{self.path}: event {event.seq} of {event.study_id} follows event "
                    f"{self._seq} of {self.study_id}"
                )
            self._took(event, len(line))
        if whole < len(tail):
            os.ftruncate(descriptor, self._end)

    def _took(self, event: Event, size: int) -> None:
        self._end += size
        self._seq = event.seq
        self._ended = isinstance(event, StudyEnded)


def read_journal(path: Path, after: int = 0) -> Iterator[Event]:
    """Yield the events of a journal file numbered above `after`; none when there is no file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    whole = data.rfind(b"\n") + 1
    for line in data[:whole].splitlines():
        event = _parse(line, path)
        if event.seq > after:
            yield event


def newest_event(path: Path) -> Event | None:
    """The last whole event of a journal file, read from its end; None when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            tail, start = b"", size
            while start and tail.rstrip(b"\n").count(b"\n") < 2:  # one line may be torn
                step = min(start, 64 << 10)
                start -= step
                file.seek(start)
                tail = file.read(step) + tail
    except FileNotFoundError:
        return None
    lines = tail[: tail.rfind(b"\n") + 1].splitlines()
    return _parse(lines[-1], path) if lines else None


def _parse(line: bytes, path: Path) -> Event:
    try:
        return EVENT.validate_json(line)
    except ValidationError as error:
        raise JournalError(f"{path}: not an event: {line[:80]!r}") from error


def _write(descriptor: int, line: bytes, offset: int) -> None:
    while line:
        written = os.pwrite(descriptor, line, offset)
        line, offset = line[written:], offset + written
    os.fsync(descriptor)
