"""Watches the edge's files and hands each change to the running HAProxy."""

import logging
from collections.abc import Callable
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


def revoked_entries(files: Files) -> list[str]:
    """Serials for `revoked.lst`."""
    return revoked_serials(files.crl.read_bytes())


def key_entries(files: Files) -> list[str]:
    """Lines of `keys.map`."""
    owners = key_owners(files.registry.read_bytes())
    return [f"{digest} {site}" for digest, site in sorted(owners.items())]


def write_tables(files: Files) -> None:
    """Write both tables, for a start or a reload of HAProxy.

    Raises:
        TableError: a file is damaged.
        OSError: a file cannot be read or written.
    """
    files.run.mkdir(parents=True, exist_ok=True)
    for path, entries in (
        (files.revoked, revoked_entries(files)),
        (files.keys, key_entries(files)),
    ):
        path.write_text("".join(f"{entry}\n" for entry in entries))


class Follower:
    """Remembers what HAProxy was last given, and gives it what is new."""

    def __init__(self, files: Files, runtime: Runtime) -> None:
        self._files = files
        self._runtime = runtime
        self._given = {path: path.read_bytes() for path in files.inputs()}
        self._trouble: dict[Path, str] = {}

    def look(self) -> list[Path]:
        """Hand over every changed file; returns those that HAProxy took."""
        # The CA comes before the list: a list of a CA that HAProxy does not know is no use to it.
        steps: tuple[tuple[Path, Callable[[bytes], None]], ...] = (
            (self._files.ca, lambda new: self._give("ca-file", self._files.ca, new)),
            (self._files.pair, lambda new: self._give("cert", self._files.pair, new)),
            (self._files.crl, self._give_list),
            (self._files.registry, self._give_keys),
        )
        return [path for path, give in steps if self._look_at(path, give)]

    def _look_at(self, path: Path, give: Callable[[bytes], None]) -> bool:
        try:
            new = path.read_bytes()
            if new == self._given[path]:
                self._trouble.pop(path, None)
                return False
            give(new)
        except (OSError, UnicodeDecodeError, TableError, RuntimeApiError) as error:
            # What was good stays in use; the same trouble is told once.
            if self._trouble.get(path) != str(error):
                log.error("%s: not taken over: %s", path, error)
                self._trouble[path] = str(error)
            return False
        self._given[path] = new
        self._trouble.pop(path, None)
        log.info("%s: taken over", path)
        return True

    def _give(self, kind: str, path: Path, pem: bytes) -> None:
        self._runtime.replace_file(kind, path, pem)

    def _give_list(self, pem: bytes) -> None:
        self._runtime.replace_entries("acl", self._files.revoked, revoked_serials(pem))
        self._runtime.replace_file("crl-file", self._files.crl, pem)

    def _give_keys(self, registry: bytes) -> None:
        owners = key_owners(registry)
        self._runtime.replace_entries(
            "map", self._files.keys, [f"{digest} {site}" for digest, site in owners.items()]
        )
