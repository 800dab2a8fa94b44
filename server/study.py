"""A study from wherever it stands to its end.

prepare -> round x rounds.count -> evaluate -> lone -> adapter
"""

import logging
from collections.abc import Callable, Iterator

from protocol.errors import FedwardError
from protocol.events import (
    LoneEvaluated,
    RoundFinished,
    SitePrepared,
    StudyEvaluated,
    StudyForecast,
)
from protocol.messages import Request
from protocol.states import Reason, StudyState

from .adapter import write_adapter
from .checkpoint import Checkpoint, save
from .context import StudyContext, StudyFailedError
from .downlink import Downlink, first_downlink, open_downlink
from .exchange import Answer, Letter
from .folder import Verdict
from .forecast import FORECAST_FIELDS, forecast, known_paces
from .prepare import Preparation
from .replies import Received, RefusedError, open_reply
from .requests import Order
from .rounds import Rounds
from .standing import Standing
from .summary import add_evaluations

log = logging.getLogger(__name__)


class Study:
    """One study; `checkpoint` is where an earlier process got to."""

    def __init__(self, context: StudyContext, checkpoint: Checkpoint | None) -> None:
        self.context = context
        self.preparation = Preparation.resume(context, checkpoint)
        self._checkpoint = checkpoint

    def run(self) -> Verdict:
        """Do all that is left to do; returns the study's own verdict.

        Raises:
            FedwardError: the study cannot go on; the message says why.
            StudyStoppedError: a person stopped it.
        """
        self.preparation.run()
        self._forecast()
        now = self._checkpoint or self._begin()
        events = self.context.folder.events
        standing = Standing.resume(self.context.settings, self._checkpoint, events)
        standing.begin(now, self.preparation.prepared)
        rounds = Rounds(self.context, self.preparation, standing)
        while now.round < self.context.settings.rounds.count:
            now = rounds.run(now)
            self._give_up_after_failures(now)
        self._evaluate(now, standing)
        if self.context.settings.evaluation.lone_baseline:
            self._lone(now)
        self._write_adapter(now)
        return Verdict(state=StudyState.FINISHED, rounds=now.round, verdict=self._words(now.round))

    def _forecast(self) -> None:
        """Tell what the study will cost, once; one that cannot fit does not begin."""
        context, preparation = self.context, self.preparation
        events = context.folder.events
        if any(isinstance(event, StudyForecast) for event in events):
            return
        assert preparation.manifest is not None
        prepared = {
            event.site: event
            for event in events
            if isinstance(event, SitePrepared) and event.site in preparation.prepared
        }
        ranks = {site: preparation.prepared[site].rank for site in prepared}
        folder = context.folder.path
        paces = known_paces(context.settings, prepared, folder.parent)
        made = forecast(context.settings, preparation.manifest, prepared, ranks, paces, folder)
        fields = {name: getattr(made, name) for name in FORECAST_FIELDS}
        context.journal.append(StudyForecast, **fields)
        for warning in made.warnings:
            log.warning("%s", warning)
        if made.refusal is not None:
            raise StudyFailedError(made.refusal)

    def _begin(self) -> Checkpoint:
        preparation = self.preparation
        assert preparation.initial is not None
        assert preparation.manifest is not None
        assert preparation.agreed is not None
        first = Checkpoint(
            round=0,
            adapter=preparation.initial,
            initial=preparation.initial,
            manifest=preparation.manifest,
            base_sha256=preparation.agreed[0],
        )
        save(self.context.folder.path, first)
        return first

    def _give_up_after_failures(self, now: Checkpoint) -> None:
        rounds = self.context.settings.rounds
        if now.failed_in_a_row >= rounds.failed_rounds:
            raise StudyFailedError(
                f"{now.failed_in_a_row} round(s) in a row had fewer than rounds.minimum_sites = "
                f"{rounds.minimum_sites} acceptable updates; the adapter of round "
                f"{now.round - now.failed_in_a_row} is kept; the events say what became of each"
            )

    def _evaluate(self, now: Checkpoint, standing: Standing) -> None:
        context = self.context
        downlink = open_downlink(context.settings, now)
        done = {event.site for event in context.folder.events if isinstance(event, StudyEvaluated)}
        orders = self._orders(done, downlink, standing)
        codecs = {order.site: order.parcel.payload.codec for order in orders}
        seconds = context.settings.rounds.deadline_seconds
        for answer, received in self._ask(context.writer.evaluate, orders, downlink, seconds):
            context.journal.append(
                StudyEvaluated,
                site=answer.letter.site,
                evaluation=received.reply.evaluation,
                bytes_up=received.size,
                bytes_down=answer.letter.size * (1 + answer.resent),
                codec_down=codecs[answer.letter.site],
            )

    def _lone(self, now: Checkpoint) -> None:
        context, rounds = self.context, self.context.settings.rounds
        downlink = first_downlink(context.settings, now)
        done = {event.site for event in context.folder.events if isinstance(event, LoneEvaluated)}
        orders = self._orders(done, downlink, Standing(context.settings))
        codecs = {order.site: order.parcel.payload.codec for order in orders}
        seconds = rounds.deadline_seconds * rounds.count
        for answer, received in self._ask(context.writer.lone, orders, downlink, seconds):
            context.journal.append(
                LoneEvaluated,
                site=answer.letter.site,
                evaluation=received.reply.evaluation,
                training=received.reply.training,
                bytes_up=received.size,
                bytes_down=answer.letter.size * (1 + answer.resent),
                codec_down=codecs[answer.letter.site],
            )

    def _orders(self, done: set[str], downlink: Downlink, standing: Standing) -> list[Order]:
        prepared = self.preparation.prepared
        return [
            Order(site, standing.parcel(site, downlink, prepared[site].rank))
            for site in sorted(set(prepared) - done)
        ]

    def _ask(
        self,
        write: Callable[[list[Order]], list[tuple[Request, Letter]]],
        orders: list[Order],
        downlink: Downlink,
        seconds: float,
    ) -> Iterator[tuple[Answer, Received]]:
        """Requests whose answers are numbers only; a site that gives none is left out.

        One that lacks what a change is to be added to is asked again, with the whole.
        """
        written, whole = write(orders), []
        requests = {request.request_id: request for request, _ in written}
        self.context.past.update(requests)
        for answer in self.context.exchange.gather([letter for _, letter in written], seconds):
            if self.preparation.owns(answer):
                self.preparation.late_arrival(answer)
                continue
            request = requests[answer.letter.request_id]
            try:
                yield answer, self._open(answer, request)
            except RefusedError as error:
                log.warning("%s: %s: %s (%s)", request.site, request.task, error, error.reason)
                if error.reason is Reason.NOT_HELD and (request.change_of or request.merges):
                    whole.append(Order(request.site, downlink.parcel(rank=request.rank)))
        if whole and whole != orders:  # who was sent the whole and lacks it still is left out
            yield from self._ask(write, whole, downlink, seconds)

    def _open(self, answer: Answer, request: Request) -> Received:
        if answer.records is None:
            raise RefusedError(answer.reason or Reason.FLOWER_ERROR, "no answer came")
        key = self.context.directory.verify_key(request.site)
        received = open_reply(answer.records, request, key, frozenset(self.context.past))
        if received.reply.reason is not None:
            raise RefusedError(received.reply.reason, "the hospital could not do it")
        return received

    def _write_adapter(self, now: Checkpoint) -> None:
        folder = self.context.folder
        try:
            write_adapter(folder.path, self.context.settings, now.manifest, now.adapter, now.merges)
        except OSError as error:
            raise FedwardError(
                f"{folder.path}: the adapter cannot be written: {error.strerror or error}; free "
                "space in this folder and start the study again"
            ) from error

    def _words(self, rounds: int) -> str:
        events = self.context.folder.events
        aggregated = {
            event.round for event in events if isinstance(event, RoundFinished) and event.aggregated
        }
        words = f"{rounds} rounds, {len(aggregated)} of them aggregated"
        after = add_evaluations([e.evaluation for e in events if isinstance(e, StudyEvaluated)])
        before = add_evaluations(list(self.preparation.base.values()))
        if after is not None and before is not None:
            words += f"; accuracy {before.accuracy:.3f} before, {after.accuracy:.3f} after"
        return words
