"""When a certificate file ends to be valid; read again when it was renewed."""

import logging
from pathlib import Path

from cryptography import x509

log = logging.getLogger(__name__)

_known: dict[Path, tuple[int, float | None]] = {}


def not_after(file: Path) -> float | None:
    """The first certificate's end, in unix seconds; None for a file that holds none."""
    try:
        stamp = file.stat().st_mtime_ns
    except OSError:
        return None
    known = _known.get(file)
    if known is None or known[0] != stamp:
        known = _known[file] = (stamp, _read(file))
    return known[1]


def _read(file: Path) -> float | None:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc.timestamp()
    except (OSError, ValueError):
        log.warning("%s: not a certificate in PEM format; /metrics does not tell its end", file)
        return None
