"""Requests to hospitals: what is asked, signed, and packed for Flower."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.envelope import seal
from protocol.flower_records import pack
from protocol.messages import Request, Task
from protocol.schedule import learning_rate
from protocol.study import StudySettings

from .downlink import Parcel
from .exchange import Letter


@dataclass(frozen=True)
class Order:
    """What one hospital is asked in a round."""

    site: str
    parcel: Parcel
    steps: int = 0


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
        self, orders: Sequence[Order], number: int, *, evaluate: bool, losses: Sequence[float] = ()
    ) -> list[tuple[Request, Letter]]:
        """One round's work; `losses` are the held-out losses of the rounds before."""
        settings = self.settings
        rate = learning_rate(settings.training, number, settings.rounds.count, losses)
        return [
            self._write(
                order.site,
                Task.TRAIN,
                number,
                order.parcel,
                evaluate=evaluate,
                steps=order.steps,
                learning_rate=rate,
            )
            for order in orders
        ]

    def evaluate(self, orders: Sequence[Order]) -> list[tuple[Request, Letter]]:
        """Measure the final adapter."""
        last = self.settings.rounds.count
        return [self._write(order.site, Task.EVALUATE, last, order.parcel) for order in orders]

    def lone(self, orders: Sequence[Order]) -> list[tuple[Request, Letter]]:
        """Train from the first adapter for as many steps as the study had, and measure."""
        rounds, training = self.settings.rounds, self.settings.training
        return [
            self._write(
                order.site,
                Task.LONE,
                rounds.count,
                order.parcel,
                steps=rounds.count * training.steps,
                learning_rate=training.learning_rate,
            )
            for order in orders
        ]

    def _write(
        self,
        site: str,
        task: Task,
        number: int,
        parcel: Parcel | None,
        *,
        evaluate: bool = True,
        want_initial: bool = False,
        steps: int = 0,
        learning_rate: float = 0.0,
    ) -> tuple[Request, Letter]:
        payload = parcel.payload if parcel else None
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
            manifest_digest=parcel.manifest_digest if parcel else None,
            rank=parcel.rank if parcel else None,
            change_of=parcel.change_of if parcel else None,
            merges=parcel.merges if parcel else None,
            payload=payload,
        )
        data = parcel.data if parcel else b""
        envelope = seal(request, data, self.key, context="request")
        records = pack(envelope, payload=parcel.record if parcel else None)
        return request, Letter(site, identity, records, envelope.size)
