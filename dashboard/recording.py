"""Events in: each kept once, in order, and the tables that are read brought up to date.

The supervisor sends an event until it is acknowledged, so one may come twice; one that leaves a
hole before it is refused, and the refusal says which is expected.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from protocol import metrics
from protocol.events import (
    EVENT,
    Event,
    LoneEvaluated,
    RoundFinished,
    RoundStarted,
    SitePrepared,
    SiteResult,
    StudyEnded,
    StudyEvaluated,
    StudyForecast,
    StudyInterrupted,
    StudyQueued,
    StudyStarted,
)
from protocol.messages import Evaluation, Health, Timing, Training
from protocol.states import Reason, SiteOutcome, StudyState

from .book import Book
from .counting import Tally
from .models import SiteTotal, StoredEvent, Study
from .problems import Problem

NO_CODEC: Final = "none"  # bytes that carried no adapter
PHASES: Final = ("queue", "load", "decode", "train", "evaluate", "encode")
ROUND_RESULTS: Final = (
    "finished_at",
    "aggregated",
    "sites_ok",
    "seconds",
    "seconds_training",
    "seconds_aggregate",
    "train_loss",
    "eval_loss",
    "eval_accuracy",
    "update_norm",
)


def record(session: Session, events: Sequence[Event]) -> list[StoredEvent]:
    """Keep what is new of `events`; all of them or, with a problem, none.

    Raises:
        Problem: 409 for a hole or for another event under a number that is taken; 422 for a first
            event that is not study_queued.
    """
    tally, kept = Tally(), []
    with session.no_autoflush:  # one INSERT for all rows of a kind, not one a row
        book = Book(session, events)
        for event in events:
            stored = _record_one(book, event, tally)
            if stored is not None:
                kept.append(stored)
    tally.write(session)
    session.flush()
    return kept


def _record_one(book: Book, event: Event, tally: Tally) -> StoredEvent | None:
    study = book.study(event.study_id)
    last = study.last_seq if study is not None else 0
    if event.seq <= last:
        _check_same(book.session, event)
        return None
    if event.seq > last + 1:
        raise Problem(
            409,
            "sequence-gap",
            f"study {event.study_id}: expected event {last + 1}, got {event.seq}; "
            "send the ones between first",
            study_id=event.study_id,
            expected_seq=last + 1,
        )
    if study is None:
        study = book.add_study(_new_study(event))
    study.last_seq, study.last_event_at = event.seq, event.at
    _apply(book, study, event, tally)
    tally.add(metrics.EVENTS_STORED, kind=event.kind)
    return _keep(book.session, event)


def health_in(events: Iterable[Event]) -> list[tuple[str, float, Health]]:
    """The health that travelled with replies: site, when, and what it said."""
    return [
        (event.site, event.at, event.health)
        for event in events
        if isinstance(event, SitePrepared | SiteResult) and event.health is not None
    ]


def _check_same(session: Session, event: Event) -> None:
    known = session.scalar(
        select(StoredEvent.body).where(
            StoredEvent.study_id == event.study_id, StoredEvent.seq == event.seq
        )
    )
    # Read, not compared as text: one that an older version kept may lack a field of today.
    if known is None or EVENT.validate_json(known) != event:
        raise Problem(
            409,
            "event-conflict",
            f"study {event.study_id}: event {event.seq} is already kept with another content; "
            "the journal it comes from is not the one that was sent before",
            study_id=event.study_id,
            seq=event.seq,
        )


def _new_study(event: Event) -> Study:
    if not isinstance(event, StudyQueued):
        raise Problem(
            422,
            "not-queued",
            f"study {event.study_id} is unknown; its first event must be study_queued, "
            f"not {event.kind}",
        )
    return make_study(event, submitted_at=event.at)


def make_study(submission: StudyQueued, *, submitted_at: float) -> Study:
    """A study that waits for its supervisor."""
    settings = submission.settings
    return Study(
        study_id=submission.study_id,
        name=settings.name,
        state=StudyState.QUEUED,
        settings=settings.model_dump_json(),
        submitted_at=submitted_at,
        rounds_total=settings.rounds.count,
        last_seq=0,
        round=0,
        rounds_done=0,
        attempt=0,
        interruptions=0,
    )


def _keep(session: Session, event: Event) -> StoredEvent:
    stored = StoredEvent(
        study_id=event.study_id,
        seq=event.seq,
        at=event.at,
        received_at=time.time(),
        kind=event.kind,
        site=getattr(event, "site", None),
        body=event.model_dump_json(),
    )
    session.add(stored)
    return stored


def _apply(book: Book, study: Study, event: Event, tally: Tally) -> None:
    """Bring the tables up to date with one event."""
    match event:
        case StudyQueued():
            # A counter that is first seen at 1 has no increase; alerts need to have seen its 0.
            for result in ("aggregated", "skipped"):
                tally.add(metrics.ROUNDS, 0, study=study.study_id, result=result)
        case StudyStarted():
            study.state = StudyState.RUNNING
            study.started_at = study.started_at or event.at
            study.attempt, study.flower_run_id = event.attempt, event.flower_run_id
        case StudyInterrupted():
            study.state = StudyState.INTERRUPTED
            study.interruptions += 1
            study.deadline_at = None
        case StudyEnded():
            study.state, study.verdict = event.state, event.verdict
            study.ended_at, study.deadline_at = event.at, None
            study.flower_bytes_in = event.flower_bytes_in
            study.flower_bytes_out = event.flower_bytes_out
        case StudyForecast():
            study.forecast_bytes_up, study.forecast_bytes_down = event.bytes_up, event.bytes_down
            study.forecast_round_seconds = event.seconds_round
        case RoundStarted():
            _round_started(book, study, event)
        case RoundFinished():
            _round_finished(book, study, event, tally)
        case SiteResult():
            _site_result(book, event, tally)
        case SitePrepared():
            _site_prepared(book, event, tally)
        case StudyEvaluated() | LoneEvaluated():
            _site_measured(book, event, tally)


def _round_started(book: Book, study: Study, event: RoundStarted) -> None:
    study.round, study.deadline_at = event.round, event.deadline_at
    found = book.round(study.study_id, event.round)
    attempts = 1
    if found is None:
        found = book.add_round(study.study_id, event.round)
    else:
        attempts = found.attempts + 1
        for name in ROUND_RESULTS:  # of an attempt that was cut short; its bytes stay counted
            setattr(found, name, None)
    found.attempts, found.started_at, found.deadline_at = attempts, event.at, event.deadline_at
    found.sites_asked = len(event.sites)


def _round_finished(book: Book, study: Study, event: RoundFinished, tally: Tally) -> None:
    study.rounds_done, study.deadline_at = event.round, None
    study.captured_energy = event.captured_energy
    found = book.round(study.study_id, event.round)
    if found is None:
        found = book.add_round(study.study_id, event.round)
        found.started_at, found.deadline_at = event.at - event.seconds, event.at
    found.finished_at, found.aggregated = event.at, event.aggregated
    found.sites_ok = event.sites_ok
    found.seconds, found.seconds_training = event.seconds, event.seconds_training
    found.seconds_aggregate = event.seconds_aggregate
    found.train_loss, found.update_norm = event.train_loss, event.update_norm
    if event.evaluation is not None and event.evaluation.examples:
        found.eval_loss = event.evaluation.loss
        found.eval_accuracy = event.evaluation.accuracy
    own = study.study_id
    result = "aggregated" if event.aggregated else "skipped"
    tally.add(metrics.ROUNDS, study=own, result=result)
    tally.observe(metrics.ROUND_DURATION, event.seconds, metrics.ROUND_BUCKETS, study=own)
    tally.observe(
        metrics.PHASE_DURATION,
        event.seconds_aggregate,
        metrics.PHASE_BUCKETS,
        study=own,
        phase="aggregate",
    )


def _site_result(book: Book, event: SiteResult, tally: Tally) -> None:
    study, site = event.study_id, event.site
    transfer = event.seconds - event.timing.total
    book.put_site_round(
        event,
        "train",
        event.round,
        outcome=event.outcome,
        reason=event.reason,
        weight=event.weight,
        seconds=event.seconds,
        seconds_work=event.timing.total,
        resent=event.resent,
        **_learnt(event.training, event.evaluation),
    )
    total = book.total(study, site)
    _newest(total, event, transfer)
    found = book.round(study, event.round)
    if found is not None:
        found.bytes_up += event.bytes_up
        found.bytes_down += event.bytes_down
    if event.resent:
        tally.add(metrics.SITE_RESENT, event.resent, study=study, site=site)
    for direction, amount in (("up", event.raw_bytes_up), ("down", event.raw_bytes_down)):
        if amount:
            tally.add(metrics.SITE_RAW_BYTES, amount, study=study, site=site, direction=direction)
    _count_answer(total, event, tally, codec_up=event.codec_up, codec_down=event.codec_down)
    if event.outcome is SiteOutcome.OK:
        _count_phases(study, event.timing, transfer, tally)


def _newest(total: SiteTotal, event: SiteResult, transfer: float) -> None:
    """A site's sums and newest numbers after one more round."""
    total.round, total.seconds = event.round, event.seconds
    total.rounds_ok += event.outcome is SiteOutcome.OK
    total.rounds_missed += event.outcome is not SiteOutcome.OK
    total.raw_bytes_up += event.raw_bytes_up
    total.raw_bytes_down += event.raw_bytes_down
    if event.training is not None:
        total.train_loss = event.training.loss_mean
        total.update_norm = event.training.update_norm
        if event.timing.train > 0:
            total.tokens_per_second = event.training.tokens / event.timing.train
    if event.evaluation is not None and event.evaluation.examples:
        total.eval_loss = event.evaluation.loss
        total.eval_accuracy = event.evaluation.accuracy
    if event.outcome is SiteOutcome.OK and transfer > 0:
        total.link_bytes_per_second = (event.bytes_up + event.bytes_down) / transfer


def _learnt(training: Training | None, evaluation: Evaluation | None) -> dict[str, Any]:
    """The columns that tell what was learnt."""
    columns: dict[str, Any] = {}
    if training is not None:
        columns |= {"steps": training.steps, "tokens": training.tokens}
        columns |= {"train_loss": training.loss_mean, "update_norm": training.update_norm}
    if evaluation is not None and evaluation.examples:
        columns |= {"eval_loss": evaluation.loss, "eval_accuracy": evaluation.accuracy}
    return columns


def _site_prepared(book: Book, event: SitePrepared, tally: Tally) -> None:
    own = {"study": event.study_id, "site": event.site}
    zero = {"outcome": SiteOutcome.REFUSED, "reason": Reason.NOT_FINITE}  # seen before it counts
    tally.add(metrics.SITE_RESULTS, 0.0, **own, **zero)
    total = book.total(event.study_id, event.site)
    total.train_examples = event.train_examples
    total.heldout_examples = event.heldout_examples
    total.data_fingerprint = event.data_fingerprint or total.data_fingerprint
    if event.evaluation is not None and event.evaluation.examples:
        total.base_accuracy = event.evaluation.accuracy
    book.put_site_round(
        event,
        "prepare",
        0,
        outcome=event.outcome,
        reason=event.reason,
        seconds_work=event.timing.total,
        **_learnt(None, event.evaluation),
    )
    _count_answer(total, event, tally, codec_up=event.codec_up)


def _site_measured(book: Book, event: StudyEvaluated | LoneEvaluated, tally: Tally) -> None:
    """The final adapter's numbers, or those of a site that trained alone."""
    total = book.total(event.study_id, event.site)
    training = event.training if isinstance(event, LoneEvaluated) else None
    if isinstance(event, LoneEvaluated):
        total.lone_accuracy = event.evaluation.accuracy
    else:
        total.final_accuracy = event.evaluation.accuracy
    book.put_site_round(
        event,
        "final" if training is None else "lone",
        total.round,
        outcome=SiteOutcome.OK,
        **_learnt(training, event.evaluation),
    )
    _count_bytes(total, event, tally, codec_down=event.codec_down)


def _count_answer(
    total: SiteTotal,
    event: SiteResult | SitePrepared,
    tally: Tally,
    *,
    codec_up: str = "",
    codec_down: str = "",
) -> None:
    total.outcome, total.reason = event.outcome, event.reason
    tally.add(
        metrics.SITE_RESULTS,
        study=event.study_id,
        site=event.site,
        outcome=event.outcome,
        reason=event.reason or "",
    )
    _count_bytes(total, event, tally, codec_up=codec_up, codec_down=codec_down)


def _count_bytes(
    total: SiteTotal,
    event: SiteResult | SitePrepared | StudyEvaluated | LoneEvaluated,
    tally: Tally,
    *,
    codec_up: str = "",
    codec_down: str = "",
) -> None:
    total.bytes_up += event.bytes_up
    total.bytes_down += event.bytes_down
    for direction, codec, amount in (
        ("up", codec_up, event.bytes_up),
        ("down", codec_down, event.bytes_down),
    ):
        if amount:
            tally.add(
                metrics.SITE_PAYLOAD_BYTES,
                amount,
                study=event.study_id,
                site=event.site,
                direction=direction,
                codec=codec or NO_CODEC,
            )


def _count_phases(study_id: str, timing: Timing, transfer: float, tally: Tally) -> None:
    seconds = {phase: float(getattr(timing, phase)) for phase in PHASES}
    seconds["transfer"] = max(transfer, 0.0)
    for phase, value in seconds.items():
        tally.observe(
            metrics.PHASE_DURATION, value, metrics.PHASE_BUCKETS, study=study_id, phase=phase
        )
