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

from protocol.codec import DeltaChain
from protocol.errors import FedwardError
from protocol.files import write_atomic
from protocol.manifest import AdapterManifest

from . import safetensors
from .aggregation import ServerState
from .merges import MergeHistory, RoundMerge

log = logging.getLogger(__name__)

Vector = npt.NDArray[np.float32]

KEEP = 2
_PATTERN = "checkpoint-*.safetensors"


class CheckpointError(FedwardError):
    """A checkpoint could not be written."""


@dataclass(frozen=True)
class Checkpoint:
    """A study after `round` rounds.

    `initial` is the adapter it began with; `chain` is what up-to-date hospitals hold, where the
    adapter goes down as a change; `merged` is what was added to the base weights.
    """

    round: int
    adapter: Vector
    initial: Vector
    manifest: AdapterManifest
    state: ServerState = field(default_factory=ServerState)
    base_sha256: str = ""
    failed_in_a_row: int = 0
    chain: DeltaChain | None = None
    merged: tuple[RoundMerge, ...] = ()

    @property
    def merges(self) -> MergeHistory:
        """What was added to the base weights, with the names of what it became."""
        return MergeHistory(self.manifest, self.base_sha256, self.merged)

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """All that is large, by the name it has in the file."""
        named: dict[str, npt.NDArray[Any]] = {
            "adapter": self.adapter,
            "initial": self.initial,
            "state": np.frombuffer(self.state.to_bytes(), np.uint8),
        }
        if self.chain is not None:
            named |= {"held": self.chain.held, "lost": self.chain.lost}
        return named | {f"merge-{n:06d}": one.vector for n, one in enumerate(self.merged, 1)}


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint`, then drop all but the last two.

    Raises:
        CheckpointError: the disk is full or not writable; earlier checkpoints are as they were.
    """
    tensors = checkpoint.tensors()
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(np.ascontiguousarray(tensor).data)
    about = {
        "round": checkpoint.round,
        "manifest": checkpoint.manifest.model_dump_json(),
        "base_sha256": checkpoint.base_sha256,
        "failed_in_a_row": checkpoint.failed_in_a_row,
        "merge_ranks": [one.rank for one in checkpoint.merged],
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
    for tensor in tensors.values():
        digest.update(tensor.data)
    if digest.hexdigest() != about["digest"]:
        raise CheckpointError(f"{path}: its contents are not those that were written")
    chain = DeltaChain(tensors["held"], tensors["lost"]) if "held" in tensors else None
    merged = tuple(
        RoundMerge(rank, tensors[f"merge-{number:06d}"])
        for number, rank in enumerate(about["merge_ranks"], 1)
    )
    return Checkpoint(
        round=about["round"],
        adapter=tensors["adapter"],
        initial=tensors["initial"],
        manifest=AdapterManifest.model_validate_json(about["manifest"]),
        state=ServerState.from_bytes(tensors["state"].tobytes()),
        base_sha256=about["base_sha256"],
        failed_in_a_row=about["failed_in_a_row"],
        chain=chain,
        merged=merged,
    )
