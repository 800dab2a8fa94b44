"""Events in: each kept once, in order, and the tables that are read brought up to date.

The supervisor sends an event until it is acknowledged, so one may come twice; one that leaves a
hole before it is refused, and the refusal says which is expected.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from protocol import metrics
from protocol.events import (
    Event,
    LoneEvaluated,
    RoundFinished,
    RoundStarted,
    SitePrepared,
    SiteResult,
    StudyEnded,
    StudyEvaluated,
    StudyInterrupted,
    StudyQueued,
    StudyStarted,
)
from protocol.messages import Health, Timing
from protocol.states import SiteOutcome, StudyState

from .counting import Tally
from .models import Round, SiteRound, SiteTotal, StoredEvent, Study
from .problems import Problem

PHASES: Final = ("queue", "load", "decode", "train", "evaluate", "encode")


def record(session: Session, events: Sequence[Event]) -> list[StoredEvent]:
    """Keep what is new of `events`; all of them or, with a problem, none.

    Raises:
        Problem: 409 for a hole or for another event under a number that is taken; 422 for a first
            event that is not study_queued.
    """
    tally = Tally()
    kept = []
    for event in events:
        study = session.get(Study, event.study_id)
        last = study.last_seq if study is not None else 0
        if event.seq <= last:
            _check_same(session, event)
            continue
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
            study = _new_study(session, event)
        kept.append(_keep(session, event))
        study.last_seq, study.last_event_at = event.seq, event.at
        _apply(session, study, event, tally)
        tally.add(metrics.EVENTS_STORED, kind=event.kind)
    tally.write(session)
    session.flush()
    return kept


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
    if known != event.model_dump_json():
        raise Problem(
            409,
            "event-conflict",
            f"study {event.study_id}: event {event.seq} is already kept with another content; "
            "the journal it comes from is not the one that was sent before",
            study_id=event.study_id,
            seq=event.seq,
        )


def _new_study(session: Session, event: Event) -> Study:
    if not isinstance(event, StudyQueued):
        raise Problem(
            422,
            "not-queued",
            f"study {event.study_id} is unknown; its first event must be study_queued, "
            f"not {event.kind}",
        )
    study = make_study(event, submitted_at=event.at)
    session.add(study)
    return study


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


def _apply(session: Session, study: Study, event: Event, tally: Tally) -> None:
    """Bring the tables up to date with one event."""
    match event:
        case StudyQueued():
            pass
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
        case RoundStarted():
            _round_started(session, study, event)
        case RoundFinished():
            _round_finished(session, study, event, tally)
        case SiteResult():
            _site_result(session, event, tally)
        case SitePrepared():
            _site_prepared(session, event, tally)
        case StudyEvaluated() | LoneEvaluated():
            _site_measured(session, event, tally)


def _round_started(session: Session, study: Study, event: RoundStarted) -> None:
    study.round, study.deadline_at = event.round, event.deadline_at
    known = session.get(Round, (study.study_id, event.round))
    attempts = known.attempts + 1 if known is not None else 1
    if known is not None:
        session.delete(known)
        session.flush()
    session.add(
        Round(
            study_id=study.study_id,
            round=event.round,
            attempts=attempts,
            started_at=event.at,
            deadline_at=event.deadline_at,
            sites_asked=len(event.sites),
            # Bytes of an attempt that was cut short were sent all the same.
            bytes_up=known.bytes_up if known is not None else 0,
            bytes_down=known.bytes_down if known is not None else 0,
        )
    )


def _round_finished(session: Session, study: Study, event: RoundFinished, tally: Tally) -> None:
    study.rounds_done, study.deadline_at = event.round, None
    found = session.get(Round, (study.study_id, event.round))
    if found is None:
        found = Round(
            study_id=study.study_id,
            round=event.round,
            attempts=1,
            started_at=event.at - event.seconds,
            deadline_at=event.at,
            sites_asked=0,
            bytes_up=0,
            bytes_down=0,
        )
        session.add(found)
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


def _site_result(session: Session, event: SiteResult, tally: Tally) -> None:
    training, evaluation = event.training, event.evaluation
    row = SiteRound(
        study_id=event.study_id,
        round=event.round,
        task="train",
        site=event.site,
        at=event.at,
        outcome=event.outcome,
        reason=event.reason,
        weight=event.weight,
        bytes_up=event.bytes_up,
        bytes_down=event.bytes_down,
        seconds=event.seconds,
        seconds_work=event.timing.total,
        resent=event.resent,
    )
    total = _total(session, event.study_id, event.site)
    total.round, total.seconds = event.round, event.seconds
    if event.outcome is SiteOutcome.OK:
        total.rounds_ok += 1
    else:
        total.rounds_missed += 1
    total.raw_bytes_up += event.raw_bytes_up
    total.raw_bytes_down += event.raw_bytes_down
    if training is not None:
        row.steps, row.tokens = training.steps, training.tokens
        row.train_loss, row.update_norm = training.loss_mean, training.update_norm
        total.train_loss, total.update_norm = training.loss_mean, training.update_norm
        if event.timing.train > 0:
            total.tokens_per_second = training.tokens / event.timing.train
    if evaluation is not None and evaluation.examples:
        row.eval_loss, row.eval_accuracy = evaluation.loss, evaluation.accuracy
        total.eval_loss, total.eval_accuracy = evaluation.loss, evaluation.accuracy
    transfer = event.seconds - event.timing.total
    if event.outcome is SiteOutcome.OK and transfer > 0:
        total.link_bytes_per_second = (event.bytes_up + event.bytes_down) / transfer
    _put(session, row)
    found = session.get(Round, (event.study_id, event.round))
    if found is not None:
        found.bytes_up += event.bytes_up
        found.bytes_down += event.bytes_down
    study, site = event.study_id, event.site
    if event.resent:
        tally.add(metrics.SITE_RESENT, event.resent, study=study, site=site)
    for direction, amount in (("up", event.raw_bytes_up), ("down", event.raw_bytes_down)):
        if amount:
            tally.add(metrics.SITE_RAW_BYTES, amount, study=study, site=site, direction=direction)
    _count_answer(total, event, tally, codec_up=event.codec_up, codec_down=event.codec_down)
    if event.outcome is SiteOutcome.OK:
        _count_phases(event.study_id, event.timing, transfer, tally)


def _site_prepared(session: Session, event: SitePrepared, tally: Tally) -> None:
    total = _total(session, event.study_id, event.site)
    total.train_examples = event.train_examples
    total.heldout_examples = event.heldout_examples
    row = SiteRound(
        study_id=event.study_id,
        round=0,
        task="prepare",
        site=event.site,
        at=event.at,
        outcome=event.outcome,
        reason=event.reason,
        bytes_up=event.bytes_up,
        bytes_down=event.bytes_down,
        seconds_work=event.timing.total,
    )
    if event.evaluation is not None and event.evaluation.examples:
        row.eval_loss, row.eval_accuracy = event.evaluation.loss, event.evaluation.accuracy
        total.base_accuracy = event.evaluation.accuracy
    _put(session, row)
    _count_answer(total, event, tally)


def _site_measured(session: Session, event: StudyEvaluated | LoneEvaluated, tally: Tally) -> None:
    """The final adapter's numbers, or those of a site that trained alone."""
    total = _total(session, event.study_id, event.site)
    row = SiteRound(
        study_id=event.study_id,
        round=total.round,
        task="lone" if isinstance(event, LoneEvaluated) else "final",
        site=event.site,
        at=event.at,
        outcome=SiteOutcome.OK,
        bytes_up=event.bytes_up,
        bytes_down=event.bytes_down,
        eval_loss=event.evaluation.loss,
        eval_accuracy=event.evaluation.accuracy,
    )
    if isinstance(event, LoneEvaluated):
        total.lone_accuracy = event.evaluation.accuracy
        row.steps, row.tokens = event.training.steps, event.training.tokens
        row.train_loss = event.training.loss_mean
    else:
        total.final_accuracy = event.evaluation.accuracy
    _put(session, row)
    _count_bytes(total, event, tally)


def _put(session: Session, row: SiteRound) -> None:
    """Add the row in the place of an earlier attempt's, of which nothing is to remain."""
    earlier = session.get(SiteRound, (row.study_id, row.round, row.task, row.site))
    if earlier is not None:
        session.delete(earlier)
        session.flush()
    session.add(row)


def _total(session: Session, study_id: str, site: str) -> SiteTotal:
    total = session.get(SiteTotal, (study_id, site))
    if total is None:
        total = SiteTotal(
            study_id=study_id,
            site=site,
            round=0,
            outcome="",
            rounds_ok=0,
            rounds_missed=0,
            bytes_up=0,
            bytes_down=0,
            raw_bytes_up=0,
            raw_bytes_down=0,
        )
        session.add(total)
    return total


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
                codec=codec,
            )


def _count_phases(study_id: str, timing: Timing, transfer: float, tally: Tally) -> None:
    seconds = {phase: float(getattr(timing, phase)) for phase in PHASES}
    seconds["transfer"] = max(transfer, 0.0)
    for phase, value in seconds.items():
        tally.observe(
            metrics.PHASE_DURATION, value, metrics.PHASE_BUCKETS, study=study_id, phase=phase
        )
