"""One round: ask, collect, aggregate, checkpoint.

    who is online and prepared -> requests -> answers, each checked and added as it comes -> mean

A round that too few hospitals answer is not aggregated, and the adapter stays what it was. A round
is over when its checkpoint is on disk: a kill costs at most one.
"""

import logging
from collections import Counter
from dataclasses import dataclass, field, replace

from protocol.errors import ProtocolError
from protocol.events import RoundFinished, RoundStarted, SiteResult
from protocol.messages import Reply, Request
from protocol.states import Reason, SiteOutcome

from .aggregation import AggregationError, Aggregator, Draw, draw_sites, make_aggregator
from .checkpoint import Checkpoint, save
from .context import StudyContext
from .downlink import Downlink, Parcel, open_downlink
from .exchange import Answer, Letter
from .outcomes import outcome_of
from .prepare import Preparation, wait_for_sites
from .replies import Received, RefusedError, open_reply, read_update, weight_of
from .requests import Order
from .standing import Standing
from .summary import add_evaluations, weighted_mean

log = logging.getLogger(__name__)

# An answer refused for one of these may stand in the place of the site's true one.
_DISPLACED = frozenset({Reason.BAD_SIGNATURE, Reason.WRONG_SITE, Reason.REPLAYED})


@dataclass
class _Round:
    """One round under way."""

    number: int
    before: Checkpoint
    aggregator: Aggregator
    downlink: Downlink
    needed: int  # acceptable answers that end the round
    started: float
    deadline: float
    requests: dict[str, Request] = field(default_factory=dict)
    parcels: dict[str, Parcel] = field(default_factory=dict)  # by site
    replies: list[Reply] = field(default_factory=list)
    spent: Counter[str] = field(default_factory=Counter)  # bytes down in vain, by site

    @property
    def raw_bytes(self) -> int:
        """What the adapter costs as float32 without a codec."""
        return 4 * self.before.manifest.numel


class Rounds:
    """Runs the rounds of one study, one at a time."""

    def __init__(self, context: StudyContext, preparation: Preparation, standing: Standing) -> None:
        self.context, self.preparation = context, preparation
        self.standing = standing

    def run(self, before: Checkpoint) -> Checkpoint:
        """The round after `before`; returns what is on disk when it is over.

        Raises:
            StudyFailedError: too few hospitals came back in time.
            CheckpointError: the disk is full.
        """
        online = self._online()
        prepared = sorted(online & set(self.preparation.prepared))
        draw = self._draw(prepared, before.round + 1)
        current = self._open_round(before, draw)
        letters = self._letters(current, list(draw.asked), evaluate=self._measures(current, draw))
        newcomers = sorted(online - set(self.preparation.prepared) - self.preparation.refused)
        letters += self.preparation.letters(newcomers, optional=True)
        seconds = self.context.settings.rounds.deadline_seconds
        enough = None
        if draw.needed < len(draw.asked):
            enough = lambda: len(current.replies) >= current.needed  # noqa: E731
        for answer in self.context.exchange.gather(letters, seconds, enough=enough):
            if self.preparation.owns(answer):
                self.preparation.late_arrival(answer)
            else:
                self._take(current, answer)
        return self._close_round(current)

    def _online(self) -> set[str]:
        """Who is online, once enough prepared hospitals are."""
        needed = self.context.settings.rounds.minimum_sites
        online = set(self.context.directory.online())
        if len(online & set(self.preparation.prepared)) < needed:
            online = set(wait_for_sites(self.context))
        return online

    def _draw(self, prepared: list[str], number: int) -> Draw:
        settings = self.context.settings
        return draw_sites(
            prepared,
            fraction=settings.aggregation.sample_fraction,
            oversample=settings.aggregation.oversample,
            minimum=settings.rounds.minimum_sites,
            seed=settings.seed,
            round_number=number,
        )

    def _measures(self, current: _Round, draw: Draw) -> bool:
        """Whether sites evaluate the adapter that this round begins with."""
        due = (current.number - 1) % self.context.settings.evaluation.every == 0
        # Round 1 begins with the first adapter, which is the base model; prepare measured that.
        return due and not (current.number == 1 and set(draw.asked) <= set(self.preparation.base))

    def _open_round(self, before: Checkpoint, draw: Draw) -> _Round:
        context, settings = self.context, self.context.settings
        started, number = context.clock(), before.round + 1
        downlink = open_downlink(settings, before)
        seconds = settings.rounds.deadline_seconds
        context.journal.append(
            RoundStarted,
            round=number,
            sites=draw.asked,
            deadline_at=context.wall_clock() + seconds,
        )
        aggregator = make_aggregator(
            settings,
            before.manifest,
            downlink.reference,
            round_number=number,
            state=before.state,
            total_sites=len(context.directory.sites),
        )
        return _Round(number, before, aggregator, downlink, draw.needed, started, started + seconds)

    def _letters(self, current: _Round, sites: list[str], *, evaluate: bool) -> list[Letter]:
        steps = self.standing.steps(sites)
        for site in sites:
            rank = self.preparation.prepared[site].rank
            current.parcels[site] = self.standing.parcel(site, current.downlink, rank)
        orders = [Order(site, current.parcels[site], steps[site]) for site in sites]
        written = self.context.writer.train(
            orders, current.number, evaluate=evaluate, losses=self._losses(current)
        )
        requests = {request.request_id: request for request, _ in written}
        current.requests |= requests
        self.context.past.update(requests)
        return [letter for _, letter in written]

    def _losses(self, current: _Round) -> list[float]:
        """The held-out losses of the rounds before, for the schedule that looks at them."""
        if self.context.settings.training.schedule != "plateau":
            return []
        return [
            event.evaluation.loss
            for event in self.context.folder.events
            if isinstance(event, RoundFinished)
            and event.evaluation is not None
            and event.round < current.number
        ]

    def _take(self, current: _Round, answer: Answer) -> None:
        """Take one answer into the aggregate, or journal why not."""
        if answer.records is None:
            assert answer.reason is not None
            self._result(current, answer, None, outcome_of(answer.reason), answer.reason)
            return
        request = current.requests[answer.letter.request_id]
        received: Received | None = None
        try:
            received = self._open(answer, request)
            if received.reply.reason is Reason.NOT_HELD and self._send_whole(current, answer):
                return
            if received.reply.reason is not None:
                outcome, reason = SiteOutcome.FAILED, received.reply.reason
                self._result(current, answer, received, outcome, reason)
                return
            weight = self._add(current, request, received)
        except RefusedError as error:
            left = current.deadline - self.context.clock()
            if (
                error.reason in _DISPLACED
                and left > 0
                and self.context.exchange.again(answer, left)
            ):
                log.warning("%s: %s; asking for the true answer", answer.letter.site, error)
                return
            log.warning("%s: update refused: %s", answer.letter.site, error)
            self._result(
                current, answer, received, SiteOutcome.REFUSED, error.reason, size=error.size
            )
            return
        self._result(current, answer, received, SiteOutcome.OK, None, weight=weight)
        current.replies.append(received.reply)
        site, reply = request.site, received.reply
        self.standing.took(site, current.downlink, current.parcels[site])
        self.standing.timed(site, reply.training, reply.timing.train)

    def _send_whole(self, current: _Round, answer: Answer) -> bool:
        """Ask again with the whole adapter: the site lost what the change is to be added to."""
        site, left = answer.letter.site, current.deadline - self.context.clock()
        parcel = current.parcels[site]
        merged = parcel.merges is not None and parcel.merges.before != current.before.base_sha256
        if left <= 0 or not (parcel.change_of or merged):
            return False
        log.info("%s does not hold the last adapter; it is sent the whole", site)
        self.standing.forget(site)
        current.spent[site] += answer.letter.size * (1 + answer.resent)
        request = current.requests[answer.letter.request_id]
        for letter in self._letters(current, [site], evaluate=request.evaluate):
            self.context.exchange.also(letter, left)
        return True

    def _open(self, answer: Answer, request: Request) -> Received:
        assert answer.records is not None
        key = self.context.directory.verify_key(answer.letter.site)
        return open_reply(answer.records, request, key, frozenset(self.context.past))

    def _add(self, current: _Round, request: Request, received: Received) -> float:
        site, settings = request.site, self.context.settings
        training = received.reply.training
        if training is None:
            raise RefusedError(Reason.MALFORMED, "a train reply without its numbers", received.size)
        examples = self.preparation.prepared[site].train_examples
        weight = weight_of(training, request, examples, settings)
        update = read_update(received, request, settings, current.before.manifest, weight=weight)
        try:
            current.aggregator.add(update)
        except ProtocolError as error:
            raise RefusedError(Reason.MALFORMED, str(error), received.size) from error
        return weight

    def _result(
        self,
        current: _Round,
        answer: Answer,
        received: Received | None,
        outcome: SiteOutcome,
        reason: Reason | None,
        *,
        weight: float = 0.0,
        size: int = 0,
    ) -> None:
        reply = received.reply if received else None
        payload = reply.payload if reply else None
        sendings = 1 + answer.resent
        site = answer.letter.site
        extra = {"timing": reply.timing, "health": reply.health} if reply else {}
        self.context.journal.append(
            SiteResult,
            round=current.number,
            site=site,
            outcome=outcome,
            reason=reason,
            weight=weight,
            bytes_up=received.size if received else size,
            bytes_down=answer.letter.size * sendings + current.spent.pop(site, 0),
            raw_bytes_up=current.raw_bytes if payload else 0,
            raw_bytes_down=current.raw_bytes * sendings,
            codec_up=payload.codec if payload else "",
            codec_down=current.parcels[site].payload.codec,
            training=reply.training if reply else None,
            evaluation=reply.evaluation if reply else None,
            seconds=answer.seconds,
            resent=answer.resent,
            **extra,
        )

    def _close_round(self, current: _Round) -> Checkpoint:
        context, replies = self.context, current.replies
        begun = context.clock()
        after, info = self._aggregate(current)
        save(context.folder.path, after)
        now = context.clock()
        context.journal.append(
            RoundFinished,
            round=current.number,
            aggregated=after.failed_in_a_row == 0,
            sites_ok=len(replies),
            seconds=now - current.started,
            seconds_training=max(
                (reply.timing.train + reply.timing.evaluate for reply in replies), default=0.0
            ),
            seconds_aggregate=now - begun,
            train_loss=weighted_mean(
                [(r.training.loss_mean, r.training.examples) for r in replies if r.training]
            ),
            evaluation=add_evaluations([r.evaluation for r in replies if r.evaluation]),
            update_norm=info.get("update_norm"),
            captured_energy=info.get("captured_energy"),
            control_norm=info.get("control_norm"),
            merge_norm=info.get("merge_norm"),
        )
        return after

    def _aggregate(self, current: _Round) -> tuple[Checkpoint, dict[str, float]]:
        """The study after this round, and numbers about the change; without enough sites, unchanged
        but for the count of failures."""
        before = current.before
        failed = replace(
            before,
            round=current.number,
            failed_in_a_row=before.failed_in_a_row + 1,
            chain=current.downlink.after,
        )
        if len(current.replies) < self.context.settings.rounds.minimum_sites:
            return failed, {}
        try:
            aggregate = current.aggregator.finish()
        except AggregationError as error:
            log.warning("round %d is not aggregated: %s", current.number, error)
            return failed, {}
        done = replace(
            failed,
            adapter=aggregate.adapter,
            state=aggregate.state,
            failed_in_a_row=0,
            merged=before.merges.add(aggregate.merge).rounds,
        )
        return done, aggregate.info


def missing_round_event(context: StudyContext, checkpoint: Checkpoint) -> None:
    """Journal a round whose checkpoint was written but whose end was not, because of a kill."""
    events = context.folder.events
    if checkpoint.round == 0 or any(
        isinstance(event, RoundFinished) and event.round == checkpoint.round for event in events
    ):
        return
    results = [
        event
        for event in events
        if isinstance(event, SiteResult) and event.round == checkpoint.round
    ]
    context.journal.append(
        RoundFinished,
        round=checkpoint.round,
        aggregated=checkpoint.failed_in_a_row == 0,
        sites_ok=len({event.site for event in results if event.outcome is SiteOutcome.OK}),
        seconds=max((event.seconds for event in results), default=0.0),
        seconds_training=max(
            (event.timing.train + event.timing.evaluate for event in results), default=0.0
        ),
        seconds_aggregate=0.0,
    )
