"""Requests to hospitals: what is asked, signed, and packed for Flower."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.codec import encode_payload
from protocol.envelope import seal
from protocol.flower_records import pack, payload_record
from protocol.manifest import AdapterManifest
from protocol.messages import Payload, Request, Task
from protocol.schedule import learning_rate
from protocol.study import StudySettings

from .checkpoint import Vector
from .exchange import Letter

if TYPE_CHECKING:
    from flwr.app import ArrayRecord


@dataclass(frozen=True)
class Downlink:
    """An adapter encoded once for all hospitals; `reference` is what they will decode."""

    payload: Payload
    data: bytes
    record: "ArrayRecord"
    reference: Vector
    manifest_digest: str


def encode_downlink(codec: str, adapter: Vector, manifest: AdapterManifest) -> Downlink:
    """Encode `adapter` (float32 [n]) for the way down."""
    payload, data, reference = encode_payload(codec, adapter, manifest, kind="adapter")
    return Downlink(payload, data, payload_record(data), reference, manifest.digest)


@dataclass(frozen=True)
class RequestWriter:
    """Writes one study's requests."""

    study_id: str
    settings: StudySettings
    key: Ed25519PrivateKey

    def prepare(self, site: str, *, evaluate: bool, want_initial: bool) -> tuple[Request, Letter]:
        """Load the base, read the data, describe the adapter."""
        return self._write(
            site, Task.PREPARE, 0, None, evaluate=evaluate, want_initial=want_initial
        )

    def train(
        self, sites: Sequence[str], number: int, downlink: Downlink, *, evaluate: bool
    ) -> list[tuple[Request, Letter]]:
        """One round's work."""
        rate = learning_rate(self.settings.training, number, self.settings.rounds.count)
        return [
            self._write(
                site,
                Task.TRAIN,
                number,
                downlink,
                evaluate=evaluate,
                steps=self.settings.training.steps,
                learning_rate=rate,
            )
            for site in sites
        ]

    def evaluate(self, sites: Sequence[str], downlink: Downlink) -> list[tuple[Request, Letter]]:
        """Measure the final adapter."""
        last = self.settings.rounds.count
        return [self._write(site, Task.EVALUATE, last, downlink) for site in sites]

    def lone(self, sites: Sequence[str], downlink: Downlink) -> list[tuple[Request, Letter]]:
        """Train from the first adapter for as many steps as the study had, and measure."""
        rounds, training = self.settings.rounds, self.settings.training
        return [
            self._write(
                site,
                Task.LONE,
                rounds.count,
                downlink,
                steps=rounds.count * training.steps,
                learning_rate=training.learning_rate,
            )
            for site in sites
        ]

    def _write(
        self,
        site: str,
        task: Task,
        number: int,
        downlink: Downlink | None,
        *,
        evaluate: bool = True,
        want_initial: bool = False,
        steps: int = 0,
        learning_rate: float = 0.0,
    ) -> tuple[Request, Letter]:
        payload = downlink.payload if downlink else None
        what = (self.study_id, site, task, number, payload and payload.digest, evaluate, steps)
        # The same work has the same id, also after a restart of the aggregator: a trainer that
        # has done it, or is doing it, answers with that and does not begin anew.
        identity = hashlib.sha256(repr((what, want_initial)).encode()).hexdigest()[:32]
        request = Request(
            request_id=identity,
            study_id=self.study_id,
            site=site,
            task=task,
            round=number,
            settings=self.settings,
            steps=steps,
            learning_rate=learning_rate,
            evaluate=evaluate,
            want_initial=want_initial,
            manifest_digest=downlink.manifest_digest if downlink else None,
            payload=payload,
        )
        data = downlink.data if downlink else b""
        envelope = seal(request, data, self.key, context="request")
        records = pack(envelope, payload=downlink.record if downlink else None)
        return request, Letter(site, identity, records, envelope.size)
