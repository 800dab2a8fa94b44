"""The base model's files: where they are, and the hash that says which weights they hold.

The hash of a base is the SHA-256 of its weight file; where the weights are sharded, the SHA-256 of
the shards' hashes, one per line, sorted. So the order and the names of the shards do not matter,
and a person can check it:

    sha256sum model.safetensors
    sha256sum model-*.safetensors | cut -c1-64 | LC_ALL=C sort | sha256sum

The files are those that transformers loads: `model.safetensors`, or the ones that
`model.safetensors.index.json` names.
"""

import hashlib
import json
import logging
import math
import struct
from pathlib import Path
from typing import Any, Final

from protocol.files import write_atomic
from protocol.site import SiteModelSettings
from protocol.states import Reason

from .errors import Refusal

log = logging.getLogger("fedward.trainer")

_MAX_HEADER: Final = 100 << 20  # what the safetensors library itself accepts
_HUB_FILES: Final = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"]


def find_base(base: str, site: SiteModelSettings) -> Path:
    """The directory of the study's base: the site's own, the one named, or the hub's.

    Raises:
        Refusal: there is none, or it is a hub id and the site does not allow downloads.
    """
    folder = site.path if site.path is not None else Path(base)
    if folder.is_dir():
        return folder
    if site.path is not None:
        raise Refusal(
            Reason.MODEL_UNREADABLE, f"model.path = '{site.path}': there is no such directory"
        )
    if not site.allow_hub:
        raise Refusal(
            Reason.MODEL_UNREADABLE,
            f"model.base = {base!r} is not a directory here, and this site downloads nothing: set "
            "model.path in site.toml to a directory with that model, or model.allow_hub = true",
        )
    return _download(base)


def _download(base: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(base, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise Refusal(
            Reason.MODEL_UNREADABLE,
            f"model.base = {base!r}: cannot be had from the hub ({type(error).__name__})",
            hint="check the id and this machine's network, or set model.path in site.toml",
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load from `folder`.

    Raises:
        Refusal: there are none, or the index names one that is missing.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise Refusal(
            Reason.MODEL_UNREADABLE,
            f"{folder}: no model.safetensors and no model.safetensors.index.json; only "
            "safetensors weights are loaded (a .bin file can run code)",
        )
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [folder / Path(name).name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refusal(
            Reason.MODEL_UNREADABLE, f"{index}: not a readable index of shards"
        ) from error
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise Refusal(
            Reason.MODEL_UNREADABLE, f"{folder}: {len(missing)} shard(s) missing: {missing[:3]}"
        )
    return files


def base_hash(folder: Path, cache: Path, *, keep: bool = True) -> str:
    """The hash of the base in `folder` (see the module); hex.

    A file's hash is kept in `cache`/base-hashes.json with the file's size and time of change, so
    16 GB are read once and not at every start. Without `keep` nothing is written.

    Raises:
        Refusal: no weights, or they cannot be read.
    """
    book = cache / "base-hashes.json"
    known = _load_book(book)
    digests, changed = [], False
    for file in weight_files(folder):
        try:
            stat = file.stat()
            entry = [stat.st_size, stat.st_mtime_ns]
            kept = known.get(str(file.resolve()))
            if not (isinstance(kept, list) and kept[:2] == entry and len(kept) == 3):
                with file.open("rb") as stream:
                    kept = [*entry, hashlib.file_digest(stream, "sha256").hexdigest()]
                known[str(file.resolve())] = kept
                changed = True
        except OSError as error:
            raise Refusal(
                Reason.MODEL_UNREADABLE, f"{file}: cannot read: {error.strerror or error}"
            ) from error
        digests.append(str(kept[2]))
    if changed and keep:
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(book, json.dumps(known).encode(), mode=0o600)
        except OSError as error:  # only a memory lost: the files are hashed again next time
            log.warning("%s: cannot write: %s", book, error.strerror or error)
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(f"{digest}\n" for digest in sorted(digests)).encode()).hexdigest()


def parameter_count(folder: Path) -> int:
    """Number of stored weights, from the safetensors headers alone (tied weights count once).

    Raises:
        Refusal: a file is not safetensors.
    """
    total = 0
    for file in weight_files(folder):
        for tensor in _header(file).values():
            total += math.prod(tensor["shape"])
    return total


def _header(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > _MAX_HEADER:
                raise ValueError("header too large")
            header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        for tensor in header.values():
            if not all(isinstance(length, int) for length in tensor["shape"]):
                raise ValueError("a shape that is not made of integers")
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise Refusal(
            Reason.MODEL_UNREADABLE, f"{file}: not a readable safetensors file"
        ) from error
    return dict(header)


def _load_book(book: Path) -> dict[str, Any]:
    try:
        known = json.loads(book.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
