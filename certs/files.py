"""Reading with limits, writing whole or not at all, one writer at a time.

`write_atomic` repeats `protocol.files.write_atomic` on purpose: `certs/` imports nothing of ours,
so that it can be read, and trusted, alone.
"""

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from certs.sentences import refuse

# A chain of four P-384 certificates is 4 KiB and a request 3 KiB. 64 KiB leaves room for
# anybody's RSA-4096 chain, and keeps a hostile file from costing memory.
MAX_BYTES = 64 * 1024


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one.

    The temporary file is born 0600 (`mkstemp`), so a key is never readable by others, not even
    for an instant.

    Raises:
        CertError: `file-unwritable`; `path` is then unchanged and no temporary file is left.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise refuse("file-unwritable", file=path, why=error.strerror) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        raise refuse("file-unwritable", file=path, why=error.strerror) from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_key(path: Path, data: bytes) -> None:
    """Write a private key: `write_atomic`, readable by its owner alone (0600)."""
    write_atomic(path, data, mode=0o600)


def append_line(path: Path, line: bytes) -> None:
    """Append one line and sync it; a line torn by an earlier crash is closed first.

    Raises:
        CertError: `file-unwritable`.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
        with os.fdopen(descriptor, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                line = b"\n" + line
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise refuse("file-unwritable", file=path, why=error.strerror) from error
    _sync_folder(path.parent)


def read_limited(path: Path, *, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises:
        CertError: `file-missing`, `file-unreadable`, `file-not-regular`, `file-empty` or
            `file-oversized`.
    """
    try:
        # O_NONBLOCK: a pipe planted under this name must not hang the process for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise refuse("file-missing", file=path) from error
    except OSError as error:
        raise refuse("file-unreadable", file=path, why=error.strerror) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refuse("file-not-regular", file=path)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(limit + 1)
    if not data.strip():
        raise refuse("file-empty", file=path)
    if len(data) > limit:
        raise refuse("file-oversized", file=path, limit=limit // 1024)
    return data


def make_folder(path: Path, *, mode: int = 0o700) -> Path:
    """Make `path` and its parents; only the owner may enter a folder that we make.

    Raises:
        CertError: `file-unwritable`.
    """
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise refuse("file-unwritable", file=path, why=error.strerror) from error
    return path


@contextlib.contextmanager
def locked(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Hold `folder/.lock`, so that two commands at once do not lose each other's change.

    A lock is not re-entrant: who holds one and takes it again waits for ever.
    """
    make_folder(folder)
    try:
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise refuse("file-unwritable", file=folder / name, why=error.strerror) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Sync the folder's entries: a rename that is only in memory is lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
