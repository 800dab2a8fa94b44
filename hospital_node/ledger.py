"""The ledger: one line for everything that left this hospital, written before it leaves.

    {"seq": 7, "at": ..., "kind": "reply", ..., "previous": "<hash of line 6>", "hash": "..."}

Append-only JSONL of mode 0600. `hash` is the SHA-256 of the line's canonical JSON (sorted keys, no
spaces) without `hash`; each line names its predecessor's, so an edited, removed or inserted line
breaks the chain at that place. What a chain alone cannot show is lines cut from the end: keep a
copy of the last hash elsewhere (`Ledger.head`) if that matters.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from protocol.errors import FedwardError

GENESIS: Final = "0" * 64
"""What the first line names as its predecessor."""


class LedgerError(FedwardError):
    """The ledger cannot be read, was altered, or cannot be written; then nothing leaves."""

    exit_code = 4


class Ledger:
    """An open ledger, locked against a second writer.

    Opening checks the whole chain. A last line without its line break is what a power cut leaves;
    nothing left on its account, so it is cut off and the fact is written as an entry.

    Raises:
        LedgerError: unreadable, held by another process, or the chain is broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.fchmod(self._file, 0o600)
        except OSError as error:
            raise LedgerError(
                f"{path}: cannot open the ledger: {error.strerror or error}"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            torn = _cut_torn_line(self._file, path)
            self.seq, self.head = 0, GENESIS
            for entry in read(path):
                self.seq, self.head = entry["seq"], entry["hash"]
        except BlockingIOError as error:
            os.close(self._file)
            raise LedgerError(
                f"{path}: another process is writing this ledger; one trainer a site"
            ) from error
        except BaseException:
            os.close(self._file)
            raise
        if torn:
            self.append({"kind": "recovered", "torn_bytes": torn})

    def append(self, entry: dict[str, Any]) -> None:
        """Write one entry and wait until it is on the disk.

        Raises:
            LedgerError: it could not be written; the file is as it was before.
        """
        with self._lock:
            body = {**entry, "seq": self.seq + 1, "previous": self.head}
            digest = _hash(body)
            line = _canonical({**body, "hash": digest}) + b"\n"
            before = os.fstat(self._file).st_size
            try:
                written = os.write(self._file, line)
                if written != len(line):
                    raise OSError("no space left for the whole line")
                os.fsync(self._file)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, before)
                raise LedgerError(
                    f"{self.path}: cannot write the ledger: {error.strerror or error}",
                    hint="nothing leaves this site until the ledger can be written; free disk "
                    "space or mend the folder's permissions",
                ) from error
            self.seq, self.head = self.seq + 1, digest

    def close(self) -> None:
        """Wait for a line being written, then release the file."""
        with self._lock:
            os.close(self._file)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries in order, checking the chain.

    Raises:
        LedgerError: unreadable, or a line is not what its successor or its own hash says.
    """
    head, number = GENESIS, 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                entry = _parse(line)
                if entry is None or entry["seq"] != number or entry["previous"] != head:
                    raise _broken(path, number)
                body = {key: value for key, value in entry.items() if key != "hash"}
                if entry["hash"] != _hash(body):
                    raise _broken(path, number)
                head = entry["hash"]
                yield entry
    except OSError as error:
        raise LedgerError(f"{path}: cannot read the ledger: {error.strerror or error}") from error


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    keys = ("seq", "previous", "hash")
    return entry if isinstance(entry, dict) and all(key in entry for key in keys) else None


def _broken(path: Path, line: int) -> LedgerError:
    return LedgerError(
        f"{path}, line {line}: the ledger was altered here or before: the chain of hashes breaks",
        hint="keep the file as evidence; move it aside and the trainer starts a new one",
    )


def _cut_torn_line(file: int, path: Path) -> int:
    """Cut what follows the last line break; returns how many bytes that was."""
    size = os.fstat(file).st_size
    if size == 0:
        return 0
    data = path.read_bytes()
    keep = data.rfind(b"\n") + 1
    if keep != size:
        os.ftruncate(file, keep)
    return size - keep


def _canonical(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()
