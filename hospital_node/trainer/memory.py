"""What a site remembers from round to round, one file a round and study; it never leaves.

    feedback/STUDY-ROUND.npz      what lossy encodings lost up to and with this round
    control/STUDY-ROUND.npz       SCAFFOLD's control variate c_k after this round
    held/STUDY-ROUND.npz          the adapter that came in this round, for the change of the next

A round begins with the file of the round before, so one that is asked again (the aggregator was
restarted, the reply got lost) begins where it began the first time. Where that file is not there
(the site missed rounds, the adapter changed its layout, the disk failed), feedback begins anew at
nothing, because it is about an adapter that is long gone; a control variate is taken from the last
round there was. Whether the aggregator used a reply is not known here. If it did not, that round's
change is lost, as it is without error feedback, and nothing is ever sent twice.
"""

import io
import logging
import re
import zipfile
from pathlib import Path
from typing import Final

import numpy as np

from protocol.codec import vector_digest
from protocol.files import write_atomic
from protocol.manifest import AdapterManifest

from .adapter import Vector

log = logging.getLogger("fedward.trainer")

_NAME: Final = re.compile(r"(.+)-(\d+)\.npz")
_STUDIES: Final = 4  # whose files are kept, the newest


class Memory:
    """One kind of memory, in `folder`; `lasting` memories outlive rounds that the site missed."""

    def __init__(self, folder: Path, *, lasting: bool = False) -> None:
        self.folder = folder
        self._lasting = lasting

    def before(self, study: str, round_number: int, manifest: AdapterManifest) -> Vector:
        """What round `round_number` of `study` begins with: float32 [n], zeros if nothing is."""
        last = round_number - 1
        if self._lasting:
            last = max((n for n in self._rounds(study) if n < round_number), default=last)
        found = self._read(self._path(study, last), manifest)
        return np.zeros(manifest.numel, np.float32) if found is None else found

    def find(self, study: str, digest: str, manifest: AdapterManifest) -> Vector | None:
        """The vector of this digest (`vector_digest`) among those of the last two rounds."""
        for number in sorted(self._rounds(study), reverse=True):
            found = self._read(self._path(study, number), manifest)
            if found is not None and vector_digest(found) == digest:
                return found
        return None

    def keep(
        self, study: str, round_number: int, manifest: AdapterManifest, vector: Vector
    ) -> None:
        """Write it; a failure is only a warning, and the next round begins anew."""
        path, buffer = self._path(study, round_number), io.BytesIO()
        np.savez(buffer, vector=vector, manifest=np.array(manifest.digest))
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(path, buffer.getvalue(), mode=0o600)
            self._forget(study, round_number)
        except OSError as error:
            log.warning("%s: cannot be kept: %s", path, error.strerror or error)

    def _read(self, path: Path, manifest: AdapterManifest) -> Vector | None:
        try:
            with np.load(path, allow_pickle=False) as kept:
                vector: Vector = kept["vector"]
                same = str(kept["manifest"]) == manifest.digest
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            log.warning("%s: damaged; begun anew", path)
            return None
        fits = vector.shape == (manifest.numel,) and vector.dtype == np.float32
        return vector if same and fits and bool(np.isfinite(vector).all()) else None

    def _rounds(self, study: str) -> list[int]:
        matches = (_NAME.fullmatch(file.name) for file in self.folder.glob("*.npz"))
        return [int(match[2]) for match in matches if match and match[1] == study]

    def _forget(self, study: str, newest: int) -> None:
        """Delete the study's files of other rounds than the last two, and the oldest studies."""
        files = sorted(self.folder.glob("*.npz"), key=lambda file: -file.stat().st_mtime)
        # Lasting ones count by what there is: the round before may be one the site missed.
        older = [n for n in self._rounds(study) if n < newest]
        kept = {newest, max(older, default=newest) if self._lasting else newest - 1}
        studies: list[str] = [study]
        for file in files:
            match = _NAME.fullmatch(file.name)
            if match is None:
                continue
            owner, number = match[1], int(match[2])
            if owner not in studies:
                studies.append(owner)
            old = owner == study and number not in kept
            if old or studies.index(owner) >= _STUDIES:
                file.unlink(missing_ok=True)

    def _path(self, study: str, round_number: int) -> Path:
        return self.folder / f"{study}-{round_number}.npz"
