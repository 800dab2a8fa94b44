"""Watches the edge's files and hands each change to the running HAProxy."""

import logging
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .runtime import Runtime, RuntimeApiError
from .tables import TableError, key_owners, revoked_serials

log = logging.getLogger("fedward.edge")

# A revocation is to take effect within 10 s. Files that hold a few kilobytes are read every
# second (their modification times can be equal after a quick second change, their bytes cannot).
EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Files:
    """What the edge is given, and where its own tables lie."""

    certs: Path  # server.pem, ca.crt, crl.pem
    registry: Path
    run: Path  # revoked.lst, keys.map, admin.sock

    @property
    def pair(self) -> Path:
        return self.certs / "server.pem"

    @property
    def ca(self) -> Path:
        return self.certs / "ca.crt"

    @property
    def crl(self) -> Path:
        return self.certs / "crl.pem"

    @property
    def revoked(self) -> Path:
        return self.run / "revoked.lst"

    @property
    def keys(self) -> Path:
        return self.run / "keys.map"

    @property
    def socket(self) -> Path:
        return self.run / "admin.sock"

    def inputs(self) -> tuple[Path, ...]:
        """Everything HAProxy cannot start without."""
        return (self.pair, self.ca, self.crl, self.registry)


def write_tables(files: Files) -> None:
    """Write both tables, for a start of HAProxy.

    Raises:
        TableError: a file is damaged.
        OSError: a file cannot be read or written.
    """
    files.run.mkdir(parents=True, exist_ok=True)
    owners = key_owners(files.registry.read_bytes())
    _write(files.revoked, revoked_serials(files.crl.read_bytes()))
    _write(files.keys, [f"{digest} {site}" for digest, site in sorted(owners.items())])


class ReloadError(Exception):
    """HAProxy does not accept the files as they are now; it goes on with the old ones."""


class HAProxy:
    """A HAProxy in master-worker mode, started here."""

    def __init__(self, config: Path, runtime: Runtime) -> None:
        self._config = config
        self.runtime = runtime
        # "-L": the name under which a new worker finds the old one's counters.
        self._process = subprocess.Popen(["haproxy", "-W", "-db", "-L", "edge", "-f", str(config)])

    @property
    def ended(self) -> int | None:
        """Its exit code once it has ended."""
        return self._process.poll()

    def reload(self) -> None:
        """Start a new worker with the files as they are now, if they are good.

        Raises:
            ReloadError: they are not; nothing has changed.
        """
        check = subprocess.run(
            ["haproxy", "-c", "-L", "edge", "-f", str(self._config)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if check.returncode != 0:
            raise ReloadError(_first_alert(check.stderr))
        self._process.send_signal(signal.SIGUSR2)

    def stop(self, seconds: float) -> None:
        """Take no more connections, end when the last one does or after `seconds`."""
        if self.ended is None:
            self._process.send_signal(signal.SIGUSR1)
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self._process.terminate()
                self._process.wait(5)


def _first_alert(output: str) -> str:
    alerts = [line for line in output.splitlines() if "[ALERT]" in line]
    return alerts[0].split(" : ", 1)[-1] if alerts else output.strip()


class Follower:
    """Remembers what HAProxy was last given, and gives it what is new.

    Lists change through the runtime API, at once. Certificates change by a reload: a new worker
    takes over the listening sockets and the old one ends its connections. The runtime API could
    change certificates too, but HAProxy up to 2.6.12 (Debian 12) crashes when a certificate and
    then a CA or revocation list are changed that way (haproxy issue 3165).
    """

    def __init__(self, files: Files, haproxy: HAProxy) -> None:
        self._files = files
        self._haproxy = haproxy
        self._given = {path: path.read_bytes() for path in files.inputs()}
        self._trouble = ""

    def look(self) -> None:
        """Hand over what has changed; what is damaged is told once and changes nothing."""
        try:
            new = {path: path.read_bytes() for path in self._files.inputs()}
            changed = [path for path in new if new[path] != self._given[path]]
            if self._files.registry in changed:
                self._take_keys(new[self._files.registry])
                self._given[self._files.registry] = new[self._files.registry]
                changed.remove(self._files.registry)
            if self._files.crl in changed:  # before the reload, which takes a second
                self._take_list(new[self._files.crl])
            if changed:
                self._haproxy.reload()
        except (OSError, TableError, RuntimeApiError, ReloadError) as error:
            if not self._trouble or str(error) != self._trouble:
                log.error("not taken over: %s", error)
            self._trouble = str(error)
            return
        self._trouble = ""
        self._given = new
        for path in changed:
            log.info("%s: taken over", path)

    def _take_list(self, pem: bytes) -> None:
        try:
            serials = revoked_serials(pem)
        except TableError as error:
            raise TableError(f"{self._files.crl}: {error}") from error
        _write(self._files.revoked, serials)
        self._haproxy.runtime.replace_entries("acl", self._files.revoked, serials)

    def _take_keys(self, registry: bytes) -> None:
        try:
            entries = [f"{digest} {site}" for digest, site in sorted(key_owners(registry).items())]
        except TableError as error:
            raise TableError(f"{self._files.registry}: {error}") from error
        _write(self._files.keys, entries)
        self._haproxy.runtime.replace_entries("map", self._files.keys, entries)
        log.info("%s: taken over", self._files.registry)


def _write(path: Path, entries: Iterable[str]) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text("".join(f"{entry}\n" for entry in entries))
    temporary.replace(path)
