"""The record of what the coordinator did: one JSON object a line, each bound to the one before.

`previous` is the SHA-256 of the line before, so a line cannot be changed or taken out of the
middle without being seen. Somebody who may write the whole file can still write it all anew: send
copies elsewhere (the lines are made for it) if that is to be seen too.
"""

import datetime as dt
import hashlib
import json
from pathlib import Path
from typing import Any

from certs._x509 import stamp, utc_now
from certs.files import append_line, locked, make_folder
from certs.sentences import refuse

FILE = "audit.jsonl"
_FIRST = "0" * 64


def record(
    folder: Path,
    act: str,
    subject: str,
    *,
    actor: str = "coordinator",
    details: dict[str, str] | None = None,
    now: dt.datetime | None = None,
) -> None:
    """Append one act to `folder/audit.jsonl` and sync it.

    Args:
        folder: the registry's folder.
        act: what was done: `approve`, `renew`, `revoke`, `rotate-server`, ...
        subject: to whom or what: a site, a server's name.
        actor: who did it, as far as that is known.
        details: serials, fingerprints, reasons; never a secret.
        now: the time, for tests.

    Raises:
        CertError: `file-unwritable`.
    """
    make_folder(folder)
    with locked(folder, ".audit-lock"):
        line = {
            "time": stamp(now or utc_now()),
            "actor": actor,
            "act": act,
            "subject": subject,
            "details": details or {},
            "previous": _last_digest(folder / FILE),
        }
        append_line(folder / FILE, json.dumps(line, sort_keys=True).encode())


def read(folder: Path) -> list[dict[str, Any]]:
    """Every act, oldest first; a line torn by a crash is passed over, for it never happened.

    Raises:
        CertError: `audit-broken` when a line does not follow from the one before.
    """
    acts: list[dict[str, Any]] = []
    previous = _FIRST
    for number, line in enumerate(_lines(folder / FILE), start=1):
        entry = _entry(line)
        if entry is None:
            continue
        if entry.get("previous") != previous:
            raise refuse("audit-broken", file=folder / FILE, line=number)
        previous = hashlib.sha256(line).hexdigest()
        acts.append(entry)
    return acts


def _last_digest(path: Path) -> str:
    last = next((line for line in reversed(_lines(path)) if _entry(line) is not None), None)
    return _FIRST if last is None else hashlib.sha256(last).hexdigest()


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
