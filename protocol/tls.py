"""TLS whose certificate can be renewed without a restart.

A connection asks for its context when it arrives (the server-name callback runs for every
handshake, with or without a name), so the next connection after a renewal sees the new
certificate and connections that are open go on with the old one.
"""

import asyncio
import logging
import ssl
from pathlib import Path

from .errors import SettingsError

log = logging.getLogger(__name__)

# Of TLS 1.2, only what has forward secrecy and authenticated encryption, as all of TLS 1.3 has.
TLS12_SUITES = "ECDHE+AESGCM:ECDHE+CHACHA20"

Stamp = tuple[tuple[int, int, int], ...]


class ReloadingContext:
    """A server context that follows its certificate and key files."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate, self._key = certificate, key
        self._stamp = self._read_stamp()
        self._current = self._load()
        self.context = self._load()  # the one the listeners hold; it only hands on
        self.context.sni_callback = self._hand_on

    def reload_if_changed(self) -> bool:
        """Take up changed files; half-written ones are left for the next look."""
        try:
            stamp = self._read_stamp()
            if stamp == self._stamp:
                return False
            self._current = self._load()
        except SettingsError as error:
            log.warning("the old certificate stays in use: %s", error)
            return False
        self._stamp = stamp
        log.info("%s was renewed and is in use from now on", self._certificate)
        return True

    async def watch(self, seconds: float = 1.0) -> None:
        """Look at the files for ever; cancel to end."""
        while True:
            await asyncio.sleep(seconds)
            self.reload_if_changed()

    def _hand_on(self, connection: ssl.SSLObject, _name: str | None, _: ssl.SSLContext) -> None:
        connection.context = self._current

    def _read_stamp(self) -> Stamp:
        try:
            stats = [path.stat() for path in (self._certificate, self._key)]
        except OSError as error:
            raise SettingsError(f"{error.filename}: cannot be read: {error.strerror}") from error
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(TLS12_SUITES)
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._certificate, self._key)
        except (ssl.SSLError, OSError) as error:
            raise SettingsError(
                f"{self._certificate} and {self._key}: not a certificate and its key: {error}"
            ) from error
        return context
