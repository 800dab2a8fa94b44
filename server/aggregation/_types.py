"""What goes into an aggregation and what comes out."""

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from protocol.errors import FedwardError, ProtocolError
from protocol.manifest import AdapterManifest

from ._state import ServerState

Vector = npt.NDArray[np.float32]


class AggregationError(FedwardError):
    """The updates that came cannot be aggregated as the study asks (too few for Krum, say)."""


@dataclass(frozen=True)
class Update:
    """One site's answer in one round.

    `delta` (float32 [n]) is the change relative to the adapter the site was sent. `manifest` is
    the layout of `delta` where it is not the study's own (a site with a smaller LoRA rank).
    `control` (float32 [n]) is the change of the site's SCAFFOLD control variate.
    """

    site: str
    weight: float
    delta: Vector
    manifest: AdapterManifest | None = None
    control: Vector | None = None


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

    `merge` is by module (`...q_proj`); empty but for the methods that change the base weights.
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
        self._manifest = manifest
        self.sites: set[str] = set()
        self.weight = 0.0

    def check(self, update: Update) -> None:
        """Refuse an update that must not enter; the checks are those of `Aggregator.add`."""
        if update.site in self.sites:
            raise ProtocolError(f"a second update from {update.site} in one round")
        if not (math.isfinite(update.weight) and update.weight > 0):
            raise ProtocolError(f"{update.site}: weight {update.weight} is not a positive number")
        manifest = update.manifest or self._manifest
        check_vector(update.delta, manifest.numel, f"{update.site}: update")
        if update.control is not None:
            check_vector(update.control, manifest.numel, f"{update.site}: control variate")

    def took(self, update: Update) -> None:
        """Count an update that has entered."""
        self.sites.add(update.site)
        self.weight += update.weight

    def require(self, minimum: int = 1, why: str = "") -> None:
        """Refuse to finish with fewer than `minimum` updates."""
        if len(self.sites) < minimum:
            raise AggregationError(
                f"{len(self.sites)} update(s) cannot be aggregated: {why or 'none came'}"
            )


def check_vector(vector: Vector, numel: int, what: str) -> None:
    """Refuse anything but a finite float32 [numel]."""
    if vector.dtype != np.float32 or vector.shape != (numel,):
        raise ProtocolError(f"{what} is {vector.dtype} {vector.shape}, expected float32 ({numel},)")
    # max and min hand a NaN on, and comparing with one is false; neither allocates.
    if not (vector.max() < np.inf and vector.min() > -np.inf):
        raise ProtocolError(f"{what} has a value that is not finite")


def l2_norm(vector: npt.NDArray[np.floating]) -> float:
    """L2 norm of a vector of any length, summed in float64 a megabyte at a time."""
    total = 0.0
    for start in range(0, vector.size, 1 << 18):
        part = vector[start : start + (1 << 18)].astype(np.float64)
        total += float(part @ part)
    return math.sqrt(total)
