"""What the aggregator knows of each hospital from the rounds before: what it holds, how fast it is.

After a restart it is read from the journal, so that the round that was cut off is asked for in the
same words, and a trainer that has done it, or is doing it, need not begin anew.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from protocol.codec import vector_digest
from protocol.events import Event, SiteResult
from protocol.messages import Description, Training
from protocol.states import SiteOutcome
from protocol.study import StudySettings

from .checkpoint import Checkpoint
from .downlink import Downlink, Parcel, down_vector


class Standing:
    """The study's hospitals, by name."""

    def __init__(self, settings: StudySettings) -> None:
        self._settings = settings
        self._holds: dict[str, str] = {}  # digest of the vector a site decoded last
        self._merged: dict[str, str] = {}  # what a site's base was changed to
        self._pace: dict[str, float] = {}  # seconds a step

    @classmethod
    def resume(
        cls, settings: StudySettings, now: Checkpoint | None, events: Iterable[Event]
    ) -> "Standing":
        """What the journal tells about the rounds up to the checkpoint's."""
        standing = cls(settings)
        if now is None:
            return standing
        held = vector_digest(now.chain.held) if now.chain else None
        states = now.merges.states if settings.aggregation.changes_base else ()
        for event in events:
            if not isinstance(event, SiteResult) or event.round > now.round:
                continue
            if event.outcome is not SiteOutcome.OK:
                continue
            standing.timed(event.site, event.training, event.timing.train)
            if event.round == now.round:
                if held is not None:
                    standing._holds[event.site] = held
                if len(states) > 1:
                    standing._merged[event.site] = states[-2]
        return standing

    def begin(self, now: Checkpoint, prepared: Mapping[str, Description]) -> None:
        """Note who has drawn the first adapter, bit for bit: it need not be sent to them.

        So it is with every hospital, but for DoRA, whose magnitudes are a machine's own.
        """
        if now.round or not self._settings.codec.chained:
            return
        drawn = vector_digest(now.initial)
        digest = vector_digest(down_vector(self._settings, now))
        for site, description in prepared.items():
            if description.initial_digest == drawn and description.rank is None:
                self._holds[site] = digest

    def parcel(self, site: str, downlink: Downlink, rank: int | None) -> Parcel:
        """What `site`, of LoRA rank `rank`, needs of this downlink."""
        return downlink.parcel(
            rank=rank, holds=self._holds.get(site), merged=self._merged.get(site)
        )

    def forget(self, site: str) -> None:
        """The site says that it does not hold what we thought: it is sent everything."""
        self._holds.pop(site, None)
        self._merged.pop(site, None)

    def took(self, site: str, downlink: Downlink, parcel: Parcel) -> None:
        """The site has answered to `parcel`, so it has what was in it."""
        if downlink.holding is not None and parcel.rank is None:
            self._holds[site] = downlink.holding
        if parcel.merges is not None:
            self._merged[site] = parcel.merges.after

    def timed(self, site: str, training: Training | None, seconds: float) -> None:
        """The site trained for `seconds`."""
        if training is not None and training.steps and seconds > 0:
            self._pace[site] = seconds / training.steps

    def steps(self, sites: Sequence[str]) -> dict[str, int]:
        """How many optimizer steps to ask of each.

        With rounds.balance = "steps", as many as a site can do while the fastest of them does
        training.steps, at least the share rounds.balance_floor; a site that was never timed does
        all. The weight of its update follows, because it follows the rows that were used.
        """
        wanted, rounds = self._settings.training.steps, self._settings.rounds
        paces = [self._pace[site] for site in sites if site in self._pace]
        if rounds.balance == "off" or not paces:
            return dict.fromkeys(sites, wanted)
        least = max(1, math.ceil(wanted * rounds.balance_floor))
        fastest = min(paces)

        def share(site: str) -> int:
            # Half a step of slack: a measured second is never quite the same twice.
            steps = math.floor(wanted * fastest / self._pace.get(site, fastest) + 0.5)
            return min(wanted, max(least, steps))

        return {site: share(site) for site in sites}
