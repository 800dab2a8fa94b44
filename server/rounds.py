"""One round: ask, collect, aggregate, checkpoint.

    who is online and prepared -> requests -> answers, each checked and added as it comes -> mean

A round that too few hospitals answer is not aggregated, and the adapter stays what it was. A round
is over when its checkpoint is on disk: a kill costs at most one.
"""

import logging
from dataclasses import dataclass, replace

from protocol.errors import ProtocolError
from protocol.events import RoundFinished, RoundStarted, SiteResult
from protocol.messages import Reply, Request
from protocol.states import Reason, SiteOutcome

from .aggregation import AggregationError, Aggregator, Update, make_aggregator
from .checkpoint import Checkpoint, save
from .context import StudyContext
from .exchange import Answer, Letter
from .outcomes import outcome_of
from .prepare import Preparation, wait_for_sites
from .replies import Received, RefusedError, open_reply, read_delta, weight_of
from .requests import Downlink, encode_downlink
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
    requests: dict[str, Request]
    replies: list[Reply]
    started: float
    deadline: float

    @property
    def raw_bytes(self) -> int:
        """What the adapter costs as float32 without a codec."""
        return 4 * self.before.manifest.numel


class Rounds:
    """Runs the rounds of one study, one at a time."""

    def __init__(self, context: StudyContext, preparation: Preparation) -> None:
        self.context, self.preparation = context, preparation

    def run(self, before: Checkpoint) -> Checkpoint:
        """The round after `before`; returns what is on disk when it is over.

        Raises:
            StudyFailedError: too few hospitals came back in time.
            CheckpointError: the disk is full.
        """
        sites, newcomers = self._who_takes_part()
        current = self._open_round(before, sites)
        letters = self._letters(current, sites)
        letters += self.preparation.letters(newcomers, optional=True)
        seconds = self.context.settings.rounds.deadline_seconds
        for answer in self.context.exchange.gather(letters, seconds):
            if self.preparation.owns(answer):
                self.preparation.late_arrival(answer)
            else:
                self._take(current, answer)
        return self._close_round(current)

    def _who_takes_part(self) -> tuple[list[str], list[str]]:
        """Hospitals for this round, and those that still have to be prepared."""
        needed = self.context.settings.rounds.minimum_sites
        prepared, refused = self.preparation.prepared, self.preparation.refused
        online = set(self.context.directory.online())
        if len(online & set(prepared)) < needed:
            online = set(wait_for_sites(self.context))
        sites = sorted(online & set(prepared))
        return sites, sorted(online - set(prepared) - refused)

    def _open_round(self, before: Checkpoint, sites: list[str]) -> _Round:
        context, settings = self.context, self.context.settings
        started, number = context.clock(), before.round + 1
        downlink = encode_downlink(settings.codec.down, before.adapter, before.manifest)
        seconds = settings.rounds.deadline_seconds
        context.journal.append(
            RoundStarted,
            round=number,
            sites=tuple(sites),
            deadline_at=context.wall_clock() + seconds,
        )
        aggregator = make_aggregator(
            settings, before.manifest, downlink.reference, round_number=number, state=before.state
        )
        deadline = started + seconds
        return _Round(number, before, aggregator, downlink, {}, [], started, deadline)

    def _letters(self, current: _Round, sites: list[str]) -> list[Letter]:
        settings = self.context.settings
        due = (current.number - 1) % settings.evaluation.every == 0
        # Round 1 begins with the first adapter, which is the base model; prepare measured that.
        measured = current.number == 1 and set(sites) <= set(self.preparation.base)
        written = self.context.writer.train(
            sites, current.number, current.downlink, evaluate=due and not measured
        )
        current.requests = {request.request_id: request for request, _ in written}
        self.context.past.update(current.requests)
        return [letter for _, letter in written]

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

    def _open(self, answer: Answer, request: Request) -> Received:
        assert answer.records is not None
        key = self.context.directory.verify_key(answer.letter.site)
        return open_reply(answer.records, request, key, frozenset(self.context.past))

    def _add(self, current: _Round, request: Request, received: Received) -> float:
        site, settings = request.site, self.context.settings
        delta = read_delta(received, settings, current.before.manifest)
        training = received.reply.training
        if training is None:
            raise RefusedError(Reason.MALFORMED, "a train reply without its numbers", received.size)
        examples = self.preparation.prepared[site].train_examples
        weight = weight_of(training, request, examples, settings)
        try:
            current.aggregator.add(Update(site, weight, delta))
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
        extra = {"timing": reply.timing, "health": reply.health} if reply else {}
        self.context.journal.append(
            SiteResult,
            round=current.number,
            site=answer.letter.site,
            outcome=outcome,
            reason=reason,
            weight=weight,
            bytes_up=received.size if received else size,
            bytes_down=answer.letter.size * sendings,
            raw_bytes_up=current.raw_bytes if payload else 0,
            raw_bytes_down=current.raw_bytes * sendings,
            codec_up=payload.codec if payload else "",
            codec_down=current.downlink.payload.codec,
            training=reply.training if reply else None,
            evaluation=reply.evaluation if reply else None,
            seconds=answer.seconds,
            resent=answer.resent,
            **extra,
        )

    def _close_round(self, current: _Round) -> Checkpoint:
        context, replies = self.context, current.replies
        begun = context.clock()
        after, norm = self._aggregate(current)
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
            update_norm=norm,
        )
        return after

    def _aggregate(self, current: _Round) -> tuple[Checkpoint, float | None]:
        """The study after this round, and the norm of the change; without enough sites, unchanged
        but for the count of failures."""
        before = current.before
        failed = replace(before, round=current.number, failed_in_a_row=before.failed_in_a_row + 1)
        if len(current.replies) < self.context.settings.rounds.minimum_sites:
            return failed, None
        try:
            aggregate = current.aggregator.finish()
        except AggregationError as error:
            log.warning("round %d is not aggregated: %s", current.number, error)
            return failed, None
        done = replace(failed, adapter=aggregate.adapter, state=aggregate.state, failed_in_a_row=0)
        return done, aggregate.info.get("update_norm")


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
