"""The aggregator's own secrets: made once, kept in its state folder, mode 0600."""

import os
import secrets
from pathlib import Path

from protocol.errors import SettingsError


def ensure_secret(path: Path) -> str:
    """The secret in `path`, made if there is none. No newline: Flower counts every byte.

    Raises:
        SettingsError: it cannot be written, or others may read it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # O_EXCL decides between two processes that start together.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_secret(path)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written: {error.strerror or error}") from error
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
        file.flush()
        os.fsync(file.fileno())
    return read_secret(path)


def read_secret(path: Path) -> str:
    """A secret or token that is one line in a file.

    Raises:
        SettingsError: missing, unreadable, empty, or readable by others.
    """
    try:
        mode = path.stat().st_mode & 0o777
        value = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from error
    if mode & 0o007:
        raise SettingsError(f"{path}: mode {mode:o} lets everybody read it; make it 600")
    if not value:
        raise SettingsError(f"{path}: is empty; it must hold one secret")
    return value
