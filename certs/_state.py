"""What a CA remembers: its roots, what it issued, what it revoked. One file, written whole.

`state.json` alone decides which root is current, so a crash in the middle of a change of CA leaves
the one or the other, never half of each. Private keys lie beside it in files of their own.
"""

import dataclasses
import datetime as dt
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509

from certs import _x509
from certs.files import read_limited, write_atomic
from certs.sentences import refuse

FORMAT = "fedward-ca"
VERSION = 1
# 4000 hospitals with a certificate a month for two years make 15 MiB; beyond it, not ours.
MAX_STATE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Issued:
    """One certificate that a CA signed."""

    serial: str  # hexadecimal, lower case
    name: str  # site, person, or a server's first name
    role: str  # server, hospital, coordinator, operator
    end: str  # not-after, as `_x509.stamp` writes it


@dataclass(frozen=True)
class Revoked:
    """One certificate that is no longer to be trusted, since when, and why."""

    serial: str
    name: str
    when: str
    reason: str
    end: str  # not-after: an entry may leave the list once the certificate has ended


@dataclass
class Generation:
    """One root with all that hangs from it."""

    root: x509.Certificate
    intermediate: x509.Certificate | None = None
    cross: x509.Certificate | None = None  # this root, signed by the root before it
    root_list: str = ""  # with an intermediate: the root's own CRL, for when its key is offline
    list_number: int = 0
    issued: list[Issued] = field(default_factory=list)
    revoked: list[Revoked] = field(default_factory=list)

    @property
    def issuing(self) -> x509.Certificate:
        """The certificate whose key signs leaves."""
        return self.intermediate or self.root

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """What a server sends after its leaf, so that holders of the old root follow it too."""
        return tuple(link for link in (self.intermediate, self.cross) if link is not None)

    def forget(self, now: dt.datetime) -> None:
        """Drop what ended more than a day ago: RFC 5280, 3.3 lets a CRL forget expired entries."""
        limit = _x509.stamp(now - dt.timedelta(days=1))
        self.issued = [entry for entry in self.issued if entry.end >= limit]
        self.revoked = [entry for entry in self.revoked if entry.end >= limit]


@dataclass
class State:
    """All of a CA's memory: the current root first, then the one that it replaces, if any."""

    generations: list[Generation]
    crl_url: str = ""
    rollover_since: str = ""

    def write(self, folder: Path) -> None:
        """Write `folder/state.json`."""
        body = {
            "format": FORMAT,
            "version": VERSION,
            "crl_url": self.crl_url,
            "rollover_since": self.rollover_since,
            "generations": [_dump(generation) for generation in self.generations],
        }
        write_atomic(folder / "state.json", json.dumps(body, indent=1).encode() + b"\n", mode=0o600)

    @classmethod
    def read(cls, folder: Path) -> "State":
        """Read `folder/state.json`.

        Raises:
            CertError: `file-*`, `state-garbage`.
        """
        path = folder / "state.json"
        data = read_limited(path, limit=MAX_STATE_BYTES)
        try:
            body = json.loads(data)
            if body["format"] != FORMAT or body["version"] != VERSION:
                raise ValueError(f"not {FORMAT} version {VERSION}")
            generations = [_load(entry) for entry in body["generations"]]
            if not generations:
                raise ValueError("no CA in it")
            return cls(generations, str(body["crl_url"]), str(body["rollover_since"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise refuse("state-garbage", file=path, why=error) from error


def _dump(generation: Generation) -> dict[str, Any]:
    def text(certificate: x509.Certificate | None) -> str:
        return _x509.pem(certificate).decode() if certificate else ""

    return {
        "root": text(generation.root),
        "intermediate": text(generation.intermediate),
        "cross": text(generation.cross),
        "root_list": generation.root_list,
        "list_number": generation.list_number,
        "issued": [dataclasses.asdict(entry) for entry in generation.issued],
        "revoked": [dataclasses.asdict(entry) for entry in generation.revoked],
    }


def _load(entry: dict[str, Any]) -> Generation:
    def certificate(text: str) -> x509.Certificate | None:
        return x509.load_pem_x509_certificate(text.encode()) if text else None

    return Generation(
        root=x509.load_pem_x509_certificate(entry["root"].encode()),
        intermediate=certificate(entry["intermediate"]),
        cross=certificate(entry["cross"]),
        root_list=str(entry["root_list"]),
        list_number=int(entry["list_number"]),
        issued=[Issued(**item) for item in entry["issued"]],
        revoked=[Revoked(**item) for item in entry["revoked"]],
    )
