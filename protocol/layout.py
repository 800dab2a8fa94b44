"""What a round's payloads hold, spelled once for both ends.

    down   adapter [, SCAFFOLD's c] [, changes of the base: FedEx-LoRA, FLoRA]
    up     change of the part that trains [, change of the site's SCAFFOLD variate]

A site of smaller rank is sent, and sends, the first directions of each LoRA pair.
"""

from .codec import trained_part, with_control, with_merges, with_rank
from .manifest import AdapterManifest
from .study import StudySettings


def site_layout(manifest: AdapterManifest, rank: int | None) -> AdapterManifest:
    """The adapter of a site whose LoRA rank is `rank`; None is the study's own."""
    return manifest if rank is None else with_rank(manifest, rank)


def down_layout(
    settings: StudySettings, manifest: AdapterManifest, rank: int | None = None, merge_rank: int = 0
) -> AdapterManifest:
    """The layout of a request's payload; `manifest` is the study's adapter.

    Raises:
        ProtocolError: the adapter has nothing of the kind that is asked for.
    """
    layout = site_layout(manifest, rank)
    if settings.aggregation.strategy == "scaffold":
        layout = with_control(layout)
    return with_merges(layout, merge_rank) if merge_rank else layout


def delta_layout(
    settings: StudySettings, manifest: AdapterManifest, round_number: int, rank: int | None = None
) -> AdapterManifest:
    """The part of a site's adapter that trains in round `round_number` (from 1).

    Raises:
        ProtocolError: none of the adapter's tensors trains in this round.
    """
    factors = settings.aggregation.trained_factors(round_number)
    return trained_part(site_layout(manifest, rank), factors)


def up_layout(
    settings: StudySettings, manifest: AdapterManifest, round_number: int, rank: int | None = None
) -> AdapterManifest:
    """The layout of a train reply's payload; see `delta_layout`."""
    part = delta_layout(settings, manifest, round_number, rank)
    return with_control(part) if settings.aggregation.strategy == "scaffold" else part
