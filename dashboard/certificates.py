"""When a certificate or a revocation list ends to be valid; read again when it was renewed."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

log = logging.getLogger(__name__)

_LIST = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----\n?", re.DOTALL)

_known: dict[Path, tuple[int, "Validity | None"]] = {}


class Validity(NamedTuple):
    """From when until when, in unix seconds; a beginning that nobody told is None."""

    begin: float | None
    end: float


def of_certificate(file: Path) -> Validity | None:
    """The first certificate's; None for a file that holds none."""
    return _cached(file, _read_certificate)


def of_lists(file: Path) -> Validity | None:
    """Of that one of a file's revocation lists that ends first; None for a file without one."""
    return _cached(file, _read_lists)


def _cached(file: Path, read: Callable[[bytes], Validity]) -> Validity | None:
    try:
        stamp = file.stat().st_mtime_ns
    except OSError:
        return None
    known = _known.get(file)
    if known is None or known[0] != stamp:
        known = _known[file] = (stamp, _tried(file, read))
    return known[1]


def _tried(file: Path, read: Callable[[bytes], Validity]) -> Validity | None:
    try:
        return read(file.read_bytes())
    except (OSError, ValueError):
        log.warning("%s: not what it should be in PEM format; /metrics does not tell its end", file)
        return None


def _read_certificate(text: bytes) -> Validity:
    found = x509.load_pem_x509_certificate(text)
    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    return Validity(begin.timestamp(), end.timestamp())


def _read_lists(text: bytes) -> Validity:
    lists = [x509.load_pem_x509_crl(block) for block in _LIST.findall(text)]
    ends = [(one.next_update_utc, one.last_update_utc) for one in lists if one.next_update_utc]
    end, begin = min(ends)
    return Validity(begin.timestamp(), end.timestamp())
