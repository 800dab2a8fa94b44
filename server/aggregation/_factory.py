"""From the study's settings to the aggregator of one round."""

from collections.abc import Sequence

from protocol.errors import ProtocolError
from protocol.manifest import AdapterManifest
from protocol.study import AggregationSettings, StudySettings

from ._flexlora import FlexLora
from ._lora import frozen_slices
from ._mean import Mean
from ._optimizers import step
from ._robust import Krum, TrimmedMean
from ._scaffold import Scaffold
from ._stacking import FedEx, Flora
from ._state import ServerState
from ._types import Aggregate, Aggregator, Update, Vector, check_vector, l2_norm


def make_aggregator(
    settings: StudySettings,
    manifest: AdapterManifest,
    reference: Vector,
    *,
    round_number: int,
    state: ServerState,
    total_sites: int = 0,
) -> Aggregator:
    """The aggregator that `settings.aggregation` asks for.

    `reference` (float32 [n]) is the adapter that the sites were sent in this round, and
    `round_number` counts from 1. `state` is what the last `Aggregate` carried, `ServerState()` at
    first. `total_sites` is how many sites the study has (SCAFFOLD's N); 0 takes those it names.

    | `aggregation` | memory beside the reference, bytes a parameter |
    |---|---|
    | fedavg, fedprox, fedavgm, fedadagrad, fedyogi, fedadam; factors, ffa, rolora | 8 |
    | scaffold | 16 |
    | lora = "flexlora" | 4 for each site, up to stack_sites of them |
    | median, trimmed-mean, krum, multi-krum | 4 for each site |
    | lora = "fedex", "flora" | 8 + 4 for each site |

    Raises:
        ProtocolError: `reference` or `state` does not fit the manifest or the strategy, or the
            adapter has no LoRA pairs where the method needs them.
    """
    check_vector(reference, manifest.numel, "the reference adapter")
    aggregation = settings.aggregation
    state = state.of(aggregation.strategy)
    if aggregation.lora == "flexlora":
        return FlexLora(manifest, reference, stack_sites=aggregation.stack_sites)
    if aggregation.lora == "fedex":
        return FedEx(manifest, reference)
    if aggregation.lora == "flora":
        return Flora(manifest, reference, seed=settings.seed, round_number=round_number)
    if aggregation.strategy == "scaffold":
        total_sites = total_sites or len(settings.sites)
        return Scaffold(aggregation, manifest, reference, state, total_sites=total_sites)
    frozen = frozen_slices(manifest, aggregation.trained_factors(round_number))
    if sum(part.stop - part.start for part in frozen) == manifest.numel:
        raise ProtocolError(f"round {round_number}: no tensor of the adapter trains")
    return _Stepped(aggregation, _combiner(aggregation, manifest), reference, state, frozen)


def _combiner(
    settings: AggregationSettings, manifest: AdapterManifest
) -> Mean | TrimmedMean | Krum:
    if settings.strategy == "median":
        return TrimmedMean(manifest, None)
    if settings.strategy == "trimmed-mean":
        return TrimmedMean(manifest, settings.trim_fraction)
    if settings.strategy == "krum":
        return Krum(manifest, byzantine=settings.byzantine_sites, keep=1)
    if settings.strategy == "multi-krum":
        return Krum(manifest, byzantine=settings.byzantine_sites, keep=settings.krum_keep)
    return Mean(manifest, by_step=settings.normalise_steps)


class _Stepped:
    """Combine the updates, then take the server's step along the result.

    With FFA-LoRA and RoLoRA one factor is frozen in this round. The other's mean is then exact:
    Σ p B_k A = (Σ p B_k) A. What an update says about the frozen factor is not looked at (a lossy
    codec may leave a little there).
    """

    def __init__(
        self,
        settings: AggregationSettings,
        combiner: Mean | TrimmedMean | Krum,
        reference: Vector,
        state: ServerState,
        frozen: Sequence[slice],
    ) -> None:
        self._settings = settings
        self._combiner = combiner
        self._reference = reference
        self._state = state
        self._frozen = frozen

    def add(self, update: Update) -> None:
        self._combiner.add(update)

    def finish(self) -> Aggregate:
        adapter, info = self._combiner.combine()  # the mean change; step makes it the adapter
        state = step(self._settings, self._reference, adapter, self._state, frozen=self._frozen)
        norm = {"update_norm": l2_norm(adapter, self._reference)}
        return Aggregate(adapter, self._combiner.intake.info() | norm | info, state)
