"""Quantized bases on the site's own disk, so that a restarted trainer need not quantize again.

    cache/quantized-KEY/    what transformers saves of the quantized base, and manifest.json

KEY follows from all that decides the numbers: the base's weights and configuration, the settings,
the device and the libraries' versions. The manifest has every file's SHA-256, and each is computed
again at a load: a file that is cut, or of which a bit has turned, is not used, and the base is
quantized anew. A folder appears whole or not at all.

For 8 billion parameters some 5.7 GB are read where it would be 16 GB, and nothing is computed.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch

from protocol.files import write_atomic
from protocol.study import ModelSettings, Quantization

from .errors import Refusal
from .loading import load_base

log = logging.getLogger("fedward.trainer")

_FORMAT: Final = 1  # raise it when what is in a folder changes
_KEPT: Final = 2  # folders that are kept, those used last
_SPARE_BYTES: Final = 2 << 30  # stay free: where the ledger cannot be written, nothing leaves
_MANIFEST: Final = "manifest.json"


def load_quantized(
    folder: Path,
    sha256: str,
    wanted: ModelSettings,
    dtype: torch.dtype,
    device: torch.device,
    cache: Path,
    *,
    keep: bool = True,
) -> Any:
    """The base of `folder`, whose weights hash to `sha256`, as `loading.load_base` gives it.

    Args:
        keep: whether to write it to `cache` if it is not there.

    Raises:
        Refusal, torch.OutOfMemoryError, MemoryError: as `load_base`.
    """
    if wanted.quantization is Quantization.NONE:
        return load_base(folder, wanted, dtype, device)
    key = _key(folder, sha256, wanted, dtype, device)
    place = cache / f"quantized-{key[:40]}"
    if place.is_dir():
        model = _load(place, key, wanted, dtype, device)
        if model is not None:
            return model
        if keep:
            shutil.rmtree(place, ignore_errors=True)
    model = load_base(folder, wanted, dtype, device)
    if keep:
        _save(model, place, key)
    return model


def _key(
    folder: Path, sha256: str, wanted: ModelSettings, dtype: torch.dtype, device: torch.device
) -> str:
    try:
        configuration = (folder / "config.json").read_bytes()
    except OSError:
        configuration = b""  # transformers will say it better
    parts = [
        _FORMAT,
        sha256,
        hashlib.sha256(configuration).hexdigest(),
        wanted.quantization.value,
        wanted.double_quantization,
        dtype,
        device.type,
        *(metadata.version(name) for name in ("torch", "transformers", "bitsandbytes")),
    ]
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _load(
    place: Path, key: str, wanted: ModelSettings, dtype: torch.dtype, device: torch.device
) -> Any:
    """What `place` holds; None where it is not what was written there."""
    try:
        manifest = json.loads((place / _MANIFEST).read_text())
        if manifest["key"] != key or manifest["files"] != _hashes(place):
            log.warning("%s: damaged; the base is quantized again", place)
            return None
        model = load_base(place, wanted, dtype, device, prepared=True)
        (place / _MANIFEST).touch()  # used last
    except (OSError, ValueError, KeyError, TypeError, Refusal) as error:
        log.warning("%s: cannot be used (%s); the base is quantized again", place, error)
        return None
    log.info("the quantized base comes from %s", place)
    return model


def _save(model: Any, place: Path, key: str) -> None:
    """Write `model` to `place`; a failure is only a warning."""
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in place.parent.glob(".quantized-*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        free = shutil.disk_usage(place.parent).free
        if free < size + _SPARE_BYTES:
            log.warning("%s: %d bytes are too few to keep the quantized base", place.parent, free)
            return
        temporary = Path(tempfile.mkdtemp(prefix=".quantized-", dir=place.parent))
        try:
            model.save_pretrained(temporary)
            manifest = {"key": key, "files": _hashes(temporary)}
            write_atomic(temporary / _MANIFEST, json.dumps(manifest).encode(), mode=0o600)
            temporary.rename(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _prune(place.parent)
    except Exception as error:  # noqa: BLE001 - the libraries' own; the model is there anyway
        log.warning("%s: cannot keep the quantized base: %s", place, error)


def _hashes(place: Path) -> dict[str, str]:
    """SHA-256 of every file but the manifest."""
    found = {}
    for file in sorted(place.iterdir()):
        if file.name != _MANIFEST:
            with file.open("rb") as stream:
                found[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def _prune(cache: Path) -> None:
    kept = sorted(cache.glob("quantized-*"), key=lambda one: (one / _MANIFEST).stat().st_mtime)
    for old in kept[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
