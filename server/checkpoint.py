"""What a study needs to go on after a kill: written whole after every round, the last two kept.

One safetensors file for each round: the adapter, the first adapter, what the server algorithm
remembers, and beside them the manifest and the counters. A checkpoint that cannot be read is
passed over for the one before it.
"""

import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from protocol.errors import FedwardError
from protocol.files import write_atomic
from protocol.manifest import AdapterManifest

from . import safetensors
from .aggregation import ServerState

log = logging.getLogger(__name__)

Vector = npt.NDArray[np.float32]

KEEP = 2
_PATTERN = "checkpoint-*.safetensors"


class CheckpointError(FedwardError):
    """A checkpoint could not be written."""


@dataclass(frozen=True)
class Checkpoint:
    """A study after `round` rounds; `initial` is the adapter it began with."""

    round: int
    adapter: Vector
    initial: Vector
    manifest: AdapterManifest
    state: ServerState = field(default_factory=ServerState)
    base_sha256: str = ""
    failed_in_a_row: int = 0


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint`, then drop all but the last two.

    Raises:
        CheckpointError: the disk is full or not writable; earlier checkpoints are as they were.
    """
    state = np.frombuffer(checkpoint.state.to_bytes(), np.uint8)
    tensors: dict[str, npt.NDArray[Any]] = {
        "adapter": checkpoint.adapter,
        "initial": checkpoint.initial,
        "state": state,
    }
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(np.ascontiguousarray(tensor).data)
    about = {
        "round": checkpoint.round,
        "manifest": checkpoint.manifest.model_dump_json(),
        "base_sha256": checkpoint.base_sha256,
        "failed_in_a_row": checkpoint.failed_in_a_row,
        "digest": digest.hexdigest(),
    }
    path = folder / f"checkpoint-{checkpoint.round:06d}.safetensors"
    try:
        write_atomic(path, safetensors.dump(tensors, {"fedward": json.dumps(about)}))
    except OSError as error:
        raise CheckpointError(
            f"{path}: the checkpoint of round {checkpoint.round} cannot be written: "
            f"{error.strerror or error}; free space in this folder and start the study again"
        ) from error
    for old in sorted(folder.glob(_PATTERN))[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; None where there is none."""
    for path in sorted(folder.glob(_PATTERN), reverse=True):
        try:
            return _load(path)
        except (OSError, FedwardError, ValidationError, KeyError, ValueError) as error:
            log.warning("%s is passed over: %s", path, error)
    return None


def _load(path: Path) -> Checkpoint:
    tensors, metadata = safetensors.load(path.read_bytes())
    about = json.loads(metadata["fedward"])
    digest = hashlib.sha256()
    for name in ("adapter", "initial", "state"):
        digest.update(tensors[name].data)
    if digest.hexdigest() != about["digest"]:
        raise CheckpointError(f"{path}: its contents are not those that were written")
    return Checkpoint(
        round=about["round"],
        adapter=tensors["adapter"],
        initial=tensors["initial"],
        manifest=AdapterManifest.model_validate_json(about["manifest"]),
        state=ServerState.from_bytes(tensors["state"].tobytes()),
        base_sha256=about["base_sha256"],
        failed_in_a_row=about["failed_in_a_row"],
    )
