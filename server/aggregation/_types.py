"""What goes into an aggregation and what comes out."""

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from protocol.codec import narrow, widen
from protocol.errors import FedwardError, ProtocolError
from protocol.manifest import AdapterManifest

from ._state import ServerState

Vector = npt.NDArray[np.float32]
Sum = npt.NDArray[np.float64]

CHUNK = 1 << 18  # values worked on at a time: float64 temporaries of 2 MiB stay in cache


class AggregationError(FedwardError):
    """The updates that came cannot be aggregated as the study asks (too few for Krum, say)."""


@dataclass(frozen=True)
class Update:
    """One site's answer in one round.

    `delta` (float32 [n]) is the change relative to the adapter the site was sent, and `weight` a
    positive number (see `update_weight`). The rest is for some methods only:

    * `manifest`: the layout of `delta` where it is a part of the study's, because the site has a
      smaller LoRA rank or only one factor trains (`protocol.codec.with_rank`, `trained_part`).
    * `control` (float32, as long as `delta`): the change of the site's SCAFFOLD control variate.
    * `steps`: local optimizer steps, for `aggregation.normalise_steps`.
    """

    site: str
    weight: float
    delta: Vector
    manifest: AdapterManifest | None = None
    control: Vector | None = None
    steps: int = 0


@dataclass(frozen=True)
class Merge:
    """What every site adds to a frozen base weight: W += scale * b @ a, scale the adapter's own.

    `b` is float32 [out, R] and `a` float32 [R, in]; only FedEx-LoRA and FLoRA ask for it.
    """

    b: Vector
    a: Vector


@dataclass(frozen=True)
class Aggregate:
    """The next adapter (float32 [n]), numbers about it, and the state to keep with it.

    `info` always has `sites`, `weight` (their sum) and `update_norm` (L2 norm of the adapter's
    change). `merge` is by module (`...q_proj`), empty but for the methods that change the base.
    """

    adapter: Vector
    info: dict[str, float]
    state: ServerState = field(default_factory=ServerState)
    merge: dict[str, Merge] = field(default_factory=dict)


class Aggregator(Protocol):
    """One round's aggregation."""

    def add(self, update: Update) -> None:
        """Take one site's update.

        Raises:
            ProtocolError: not finite, of the wrong length or layout, a weight that is not a
                positive number, or a site's second update. The aggregation is as it was before.
        """

    def finish(self) -> Aggregate:
        """The aggregate of all updates added; call it once.

        Raises:
            AggregationError: no update, or too few for the method.
        """


class Intake:
    """The checks every aggregator makes on an update, and the count of those taken."""

    def __init__(self, manifest: AdapterManifest) -> None:
        self.manifest = manifest
        self.sites: list[str] = []
        self.weight = 0.0

    def check(self, update: Update) -> Vector:
        """Refuse an update that must not enter; return its delta as float32 [n]."""
        if update.site in self.sites:
            raise ProtocolError(f"a second update from {update.site} in one round")
        if not (math.isfinite(update.weight) and update.weight > 0):
            raise ProtocolError(f"{update.site}: weight {update.weight} is not a positive number")
        return self.full(update.delta, update, "update")

    def full(self, vector: Vector, update: Update, what: str) -> Vector:
        """A vector of an update, checked, laid out by the study's manifest."""
        part = update.manifest or self.manifest
        check_vector(vector, part.numel, f"{update.site}: {what}")
        return vector if part == self.manifest else widen(vector, part, self.manifest)

    def took(self, update: Update) -> None:
        """Count an update that has entered."""
        self.sites.append(update.site)
        self.weight += update.weight

    def require(self, minimum: int = 1, why: str = "none came") -> None:
        """Refuse to finish with fewer than `minimum` updates."""
        if len(self.sites) < minimum:
            raise AggregationError(f"{len(self.sites)} update(s) cannot be aggregated: {why}")

    def info(self) -> dict[str, float]:
        """The numbers every aggregate has but the norm."""
        return {"sites": float(len(self.sites)), "weight": self.weight}


def sent_adapter(reference: Vector, manifest: AdapterManifest, update: Update) -> Vector:
    """The adapter that the site of `update` began with, laid out by the study's manifest.

    A site of smaller rank r' was sent the first r' directions of each pair, so outside them its
    adapter is zero, whatever the reference holds there.
    """
    if update.manifest is None or update.manifest == manifest:
        return reference
    return widen(narrow(reference, manifest, update.manifest), update.manifest, manifest)


def check_vector(vector: Vector, numel: int, what: str) -> None:
    """Refuse anything but a finite float32 [numel]."""
    if vector.dtype != np.float32 or vector.shape != (numel,):
        raise ProtocolError(f"{what} is {vector.dtype} {vector.shape}, expected float32 ({numel},)")
    for start in range(0, numel, CHUNK):
        if not np.isfinite(vector[start : start + CHUNK]).all():
            raise ProtocolError(f"{what} has a value that is not finite")


def l2_norm(vector: Vector, other: Vector | None = None) -> float:
    """L2 norm of `vector`, or of `vector - other`, summed in float64."""
    total = 0.0
    for start in range(0, vector.size, CHUNK):
        part = vector[start : start + CHUNK].astype(np.float64)
        if other is not None:
            part -= other[start : start + CHUNK]
        total += float(part @ part)
    return math.sqrt(total)
