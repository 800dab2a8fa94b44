"""What a round sends to the hospitals, encoded once for all that can take it the same way.

up-to-date site      the change since the round before     (codec.down: topk, int4, nf4, int2)
any other site       the adapter itself
site of smaller rank its directions of what the others hold, without loss
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from protocol.codec import (
    DeltaChain,
    Link,
    encode_payload,
    join_control,
    narrow,
    split_control,
    vector_digest,
)
from protocol.flower_records import payload_record
from protocol.layout import down_layout, site_layout
from protocol.manifest import AdapterManifest
from protocol.messages import Merges, Payload
from protocol.study import StudySettings

from .aggregation import CONTROL
from .checkpoint import Checkpoint, Vector
from .merges import MergeHistory

if TYPE_CHECKING:
    from flwr.app import ArrayRecord

LOSSLESS: Final = "fp32+zstd"


@dataclass(frozen=True)
class Parcel:
    """One encoding of a round's adapter: what some of the hospitals are sent."""

    payload: Payload
    data: bytes
    record: "ArrayRecord"
    manifest_digest: str  # of the study's adapter
    rank: int | None = None
    change_of: str | None = None
    merges: Merges | None = None


@dataclass
class Downlink:
    """One adapter on its way down; `reference` (float32 [n]) is what full-rank sites decode."""

    settings: StudySettings
    manifest: AdapterManifest
    vector: Vector  # laid out by `layout`
    history: MergeHistory | None = None
    link: Link | None = None
    _parcels: dict[tuple[int | None, str | None, str | None], Parcel] = field(default_factory=dict)

    @cached_property
    def layout(self) -> AdapterManifest:
        """The adapter, and c with SCAFFOLD."""
        return down_layout(self.settings, self.manifest)

    @cached_property
    def sent(self) -> Vector:
        """What an up-to-date site of full rank holds after this round's payload."""
        if self.link is not None:
            return self.link.after.held
        return encode_payload(self.settings.codec.down, self.vector, self.layout, "adapter")[2]

    @property
    def reference(self) -> Vector:
        """The adapter that sites train from: float32 [n]."""
        return self.sent[: self.manifest.numel]

    @property
    def holding(self) -> str | None:
        """The digest of `sent`, where the next round may send the change from it."""
        return self._holding if self.settings.codec.chained else None

    @cached_property
    def _holding(self) -> str:
        return vector_digest(self.sent)

    @property
    def after(self) -> DeltaChain | None:
        """For the checkpoint: what the next round's change begins with."""
        return self.link.after if self.link is not None else None

    def parcel(
        self, *, rank: int | None = None, holds: str | None = None, merged: str | None = None
    ) -> Parcel:
        """What to send a site of LoRA rank `rank` that holds the vector of digest `holds` and
        whose base has been changed to `merged`; None: nothing is known about it."""
        change_of = None
        if self.link is not None and rank is None and holds == self.link.base:
            change_of = holds
        key = (rank, change_of, merged if self.history else None)
        if key not in self._parcels:
            self._parcels[key] = self._encode(*key)
        return self._parcels[key]

    def _encode(self, rank: int | None, change_of: str | None, merged: str | None) -> Parcel:
        link, digest = self.link, self.manifest.digest
        if change_of is not None and link is not None:
            record = payload_record(link.data)
            return Parcel(link.payload, link.data, record, digest, change_of=change_of)
        codec, vector, layout = self.settings.codec.down, self.vector, self.layout
        if link is not None or rank is not None:
            codec, vector = LOSSLESS, self.sent
        if rank is not None:
            layout, vector = self._narrowed(vector, rank)
        merges = None
        if self.history is not None:
            merges, stacked = self.history.since(merged)
            layout = down_layout(self.settings, self.manifest, rank, merges.rank)
            vector = np.concatenate([vector, stacked])
        payload, data, _ = encode_payload(codec, vector, layout, "adapter")
        return Parcel(payload, data, payload_record(data), digest, rank, None, merges)

    def _narrowed(self, vector: Vector, rank: int) -> tuple[AdapterManifest, Vector]:
        layout = down_layout(self.settings, self.manifest, rank)
        part = site_layout(self.manifest, rank)
        if self.layout == self.manifest:
            return layout, narrow(vector, self.manifest, part)
        adapter, control = split_control(vector)
        cut = [narrow(half, self.manifest, part) for half in (adapter, control)]
        return layout, join_control(*cut)


def down_vector(settings: StudySettings, now: Checkpoint) -> Vector:
    """The adapter in `now`, and behind it c with SCAFFOLD."""
    if settings.aggregation.strategy != "scaffold":
        return now.adapter
    return join_control(now.adapter, now.state.vector(CONTROL, now.adapter.size))


def open_downlink(settings: StudySettings, now: Checkpoint) -> Downlink:
    """The downlink of the adapter in `now`, for the round after it."""
    vector = down_vector(settings, now)
    history = now.merges if settings.aggregation.changes_base else None
    downlink = Downlink(settings, now.manifest, vector, history)
    if settings.codec.chained:
        chain = now.chain or DeltaChain.start(vector)
        # FlexLoRA's factors of two rounds are different ones; what one lost is not the other's.
        downlink.link = chain.advance(
            vector,
            downlink.layout,
            settings.codec.down,
            feedback=settings.aggregation.lora != "flexlora",
        )
    return downlink


def first_downlink(settings: StudySettings, now: Checkpoint) -> Downlink:
    """The adapter that the study began with, on the base as it was."""
    vector = now.initial
    if settings.aggregation.strategy == "scaffold":
        vector = join_control(vector, np.zeros_like(vector))
    history = MergeHistory(now.manifest, now.base_sha256)
    changed = settings.aggregation.changes_base
    return Downlink(settings, now.manifest, vector, history if changed else None)
