"""Files that matter are written whole or not at all."""

import os
import tempfile
from pathlib import Path


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one.

    The bytes go to a temporary name in the same folder, are synced, and are renamed over `path`;
    the folder is synced too, because a rename that is only in memory is lost with the power.

    Raises:
        OSError: the folder is missing, not writable or full; `path` is then unchanged and no
            temporary file is left behind.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
