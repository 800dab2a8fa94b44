"""Bearer tokens: one file a role, made at first start, never a default password.

A file may hold several tokens, one a line, so that a token can be replaced without a moment in
which neither works: add the new one on top, give it out, delete the old line.
"""

import hashlib
import hmac
import logging
import secrets
import stat
from pathlib import Path
from typing import Final

from protocol.control import Role
from protocol.errors import SettingsError
from protocol.files import write_atomic

log = logging.getLogger(__name__)

MIN_TOKEN_CHARACTERS: Final = 32  # ours have 43: 256 random bits in base64


def token_file(folder: Path, role: Role) -> Path:
    """Where a role's token lies."""
    return folder / f"{role}.token"


def digest(token: str) -> bytes:
    """What is kept and compared in a token's stead: fixed length, so comparing is constant-time."""
    return hashlib.sha256(token.encode()).digest()


class Tokens:
    """The tokens of every role, read again when a file changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamp: tuple[tuple[int, int], ...] = ()
        self._known: dict[bytes, Role] = {}
        self._make_missing()
        self._read()

    def role_of(self, token: str) -> Role | None:
        """Whose token this is, or None; every known token is compared, whichever matches."""
        return self.role_of_digest(digest(token))

    def role_of_digest(self, offered: bytes) -> Role | None:
        """Like `role_of`, for a digest that was kept: None once the token was replaced."""
        stamps = self._stamps()
        if stamps != self._stamp:
            try:
                self._read()
            except SettingsError as error:
                self._stamp = stamps
                log.error("%s; the last good tokens stay in force", error)
        found = None
        for known, role in self._known.items():
            if hmac.compare_digest(known, offered):
                found = role
        return found

    def _make_missing(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for role in Role:
                file = token_file(self._folder, role)
                if not file.exists():
                    write_atomic(file, f"{secrets.token_urlsafe(32)}\n".encode(), mode=0o600)
        except OSError as error:
            raise SettingsError(
                f"access.tokens = {str(self._folder)!r}: cannot write the tokens: "
                f"{error.strerror or error}"
            ) from error

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        found = []
        for role in Role:
            try:
                state = token_file(self._folder, role).stat()
            except OSError:
                found.append((0, 0))
            else:
                found.append((state.st_mtime_ns, state.st_ino))
        return tuple(found)

    def _read(self) -> None:
        stamp = self._stamps()
        known: dict[bytes, Role] = {}
        for role in Role:
            for token in _tokens_in(token_file(self._folder, role)):
                if known.setdefault(digest(token), role) is not role:
                    raise SettingsError(
                        f"{self._folder}: two roles have the same token; delete the file of one "
                        "and start again, a new token is made"
                    )
        self._known, self._stamp = known, stamp


def _tokens_in(file: Path) -> list[str]:
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        lines = file.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: cannot read the token: {error}") from error
    # Group bits are left alone: a Kubernetes Secret with fsGroup is mounted 0440.
    if mode & 0o007:
        raise SettingsError(
            f"{file}: everybody may read this token (mode {mode:04o})", hint=(f"chmod 600 {file}")
        )
    short = [line for line in lines if len(line) < MIN_TOKEN_CHARACTERS]
    if short or not lines:
        raise SettingsError(
            f"{file}: a token needs at least {MIN_TOKEN_CHARACTERS} characters; delete the file "
            "and start again, a good one is made"
        )
    return lines
