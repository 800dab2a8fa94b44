"""What lossy encodings lost, kept for the next round: error feedback's memory, one file a round.

    feedback/STUDY-ROUND.npz      what was lost up to and with this round; mode 0600, never leaves

A round begins with the file of the round before. So a round that is asked again (the aggregator was
restarted, the reply got lost) begins where it began the first time; and where the file of the round
before is not there (the site missed rounds, the adapter changed its layout, the disk failed), the
memory is about an adapter that is long gone and begins anew at nothing. Whether the aggregator used
a reply is not known here. If it did not, that round's change is lost, as it is without error
feedback, and nothing is ever sent twice.
"""

import io
import logging
import re
import zipfile
from pathlib import Path
from typing import Final

import numpy as np

from protocol.codec import ErrorFeedback
from protocol.files import write_atomic
from protocol.manifest import AdapterManifest

from .adapter import Vector

log = logging.getLogger("fedward.trainer")

_STUDIES: Final = 4  # whose files are kept, the newest


class Residuals:
    """The memories of one site's studies, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def before(self, study: str, round_number: int, manifest: AdapterManifest) -> ErrorFeedback:
        """What round `round_number` of `study` begins with."""
        path = self._path(study, round_number - 1)
        try:
            with np.load(path, allow_pickle=False) as kept:
                residual = kept["residual"]
                same = str(kept["manifest"]) == manifest.digest
        except FileNotFoundError:
            return ErrorFeedback.new(manifest.numel)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            log.warning("%s: damaged; error feedback begins anew", path)
            return ErrorFeedback.new(manifest.numel)
        fits = residual.shape == (manifest.numel,) and residual.dtype == np.float32
        if not (same and fits and np.isfinite(residual).all()):
            return ErrorFeedback.new(manifest.numel)
        return ErrorFeedback(residual)

    def keep(
        self, study: str, round_number: int, manifest: AdapterManifest, residual: Vector
    ) -> None:
        """Write what was lost; a failure is only a warning, and the next round begins anew."""
        path, buffer = self._path(study, round_number), io.BytesIO()
        np.savez(buffer, residual=residual, manifest=np.array(manifest.digest))
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(path, buffer.getvalue(), mode=0o600)
            self._forget(study, round_number)
        except OSError as error:
            log.warning("%s: cannot keep what was lost: %s", path, error.strerror or error)

    def _forget(self, study: str, newest: int) -> None:
        """Delete the study's files of other rounds than the last two, and the oldest studies."""
        files = sorted(self.folder.glob("*.npz"), key=lambda file: -file.stat().st_mtime)
        studies: list[str] = [study]
        for file in files:
            match = re.fullmatch(r"(.+)-(\d+)\.npz", file.name)
            if match is None:
                continue
            owner, number = match[1], int(match[2])
            if owner not in studies:
                studies.append(owner)
            old = owner == study and number not in {newest, newest - 1}
            if old or studies.index(owner) >= _STUDIES:
                file.unlink(missing_ok=True)

    def _path(self, study: str, round_number: int) -> Path:
        return self.folder / f"{study}-{round_number}.npz"
