"""From the study's settings to the aggregator of one round."""

from protocol.manifest import AdapterManifest
from protocol.study import StudySettings

from ._mean import Mean
from ._state import ServerState
from ._types import Aggregate, Aggregator, Update, Vector, check_vector, l2_norm


def make_aggregator(
    settings: StudySettings,
    manifest: AdapterManifest,
    reference: Vector,
    *,
    round_number: int,
    state: ServerState,
) -> Aggregator:
    """The aggregator that `settings.aggregation` asks for.

    `reference` (float32 [n]) is the adapter that the sites were sent in this round, `state` what
    the last `Aggregate` carried (`ServerState()` at first).

    Raises:
        ProtocolError: `reference` or `state` does not fit the manifest or the strategy.
    """
    check_vector(reference, manifest.numel, "the reference adapter")
    return _FedAvg(manifest, reference, state)


class _FedAvg:
    def __init__(self, manifest: AdapterManifest, reference: Vector, state: ServerState) -> None:
        self._mean = Mean(manifest)
        self._reference = reference
        self._state = state

    def add(self, update: Update) -> None:
        self._mean.add(update)

    def finish(self) -> Aggregate:
        mean = self._mean.mean()
        intake = self._mean.intake
        info = {
            "sites": float(len(intake.sites)),
            "weight": intake.weight,
            "update_norm": l2_norm(mean),
        }
        return Aggregate(self._reference + mean, info, self._state)
