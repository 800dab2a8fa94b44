"""When a certificate or a revocation list ends to be valid; read again when it was renewed."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

log = logging.getLogger(__name__)

_LIST = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----\n?", re.DOTALL)

_known: dict[Path, tuple[int, float | None]] = {}


def not_after(file: Path) -> float | None:
    """The first certificate's end, in unix seconds; None for a file that holds none."""
    return _cached(file, _read_certificate)


def next_update(file: Path) -> float | None:
    """When the first of a file's revocation lists ends; None for a file that holds none."""
    return _cached(file, _read_lists)


def _cached(file: Path, read: Callable[[bytes], float]) -> float | None:
    try:
        stamp = file.stat().st_mtime_ns
    except OSError:
        return None
    known = _known.get(file)
    if known is None or known[0] != stamp:
        known = _known[file] = (stamp, _tried(file, read))
    return known[1]


def _tried(file: Path, read: Callable[[bytes], float]) -> float | None:
    try:
        return read(file.read_bytes())
    except (OSError, ValueError):
        log.warning("%s: not what it should be in PEM format; /metrics does not tell its end", file)
        return None


def _read_certificate(text: bytes) -> float:
    return x509.load_pem_x509_certificate(text).not_valid_after_utc.timestamp()


def _read_lists(text: bytes) -> float:
    lists = [x509.load_pem_x509_crl(block) for block in _LIST.findall(text)]
    return min(one.next_update_utc.timestamp() for one in lists if one.next_update_utc)
