"""`/metrics`, in Prometheus's text format.

Written by hand and not by prometheus-client, whose writer takes 4 us a sample and a scrape of a
thousand hospitals has 40,000 (bench/dashboard.py prints both). A study's part is rendered again
only when one of its events came, so ended studies cost nothing.
"""

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from protocol import metrics
from protocol.metrics import ALL, Metric
from protocol.states import SiteOutcome, StudyState
from protocol.study import StudySettings

from .access import READERS
from .certificates import of_lists
from .depends import ThePlane
from .expiry import validities
from .gauges import hospital_samples
from .models import Counter, Round, SiteRound, SiteTotal, Study
from .plane import Plane
from .problems import Problem, documented
from .reading import remaining_seconds

router = APIRouter()

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
ENDED: Final = tuple(state for state in StudyState if state.ended)
Blocks = dict[str, list[str]]


def _may_scrape(request: Request, plane: ThePlane) -> None:
    if plane.settings.access.open_metrics:
        return
    principal = plane.access.principal(request)
    if principal.role not in READERS:
        raise Problem(403, "wrong-role", "metrics need the token of an operator or a coordinator")


@router.get(
    "/metrics",
    tags=["probes"],
    response_class=Response,
    dependencies=[Depends(_may_scrape)],
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **documented(401, 403, 429),
    },
)
def scrape(plane: ThePlane) -> Response:
    """Everything that `protocol.metrics` names, for Prometheus."""
    return Response(render(plane), media_type=MEDIA_TYPE)


def render(plane: Plane) -> str:
    """The whole text."""
    blocks: Blocks = defaultdict(list)
    now = time.time()
    with plane.database.reading() as session:
        chosen = _chosen_studies(session, plane.settings.limits.metric_studies)
        for study in chosen:
            for name, lines in _study_blocks(plane, session, study).items():
                blocks[name].append(lines)
        plane.rendered = {study.study_id: plane.rendered[study.study_id] for study in chosen}
        _counter_lines(blocks, session, "")
        registry = plane.enrolled.registry()
        hospital_samples(blocks, session, plane.reports.all(), registry, now)
    _own_lines(blocks, plane)
    return "".join(_families(blocks))


def _families(blocks: Blocks) -> Iterable[str]:
    for metric in ALL.values():
        lines = blocks.get(metric.name)
        if lines:
            yield f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n"
            yield "\n".join(lines)
            yield "\n"


def _chosen_studies(session: Session, ended: int) -> list[Study]:
    query = select(Study)
    running = session.scalars(query.where(Study.state.not_in(ENDED)).order_by(Study.study_id))
    newest = session.scalars(
        query.where(Study.state.in_(ENDED)).order_by(Study.ended_at.desc()).limit(ended)
    )
    return [*running, *newest]


def _study_blocks(plane: Plane, session: Session, study: Study) -> dict[str, str]:
    known = plane.rendered.get(study.study_id)
    if known is not None and known[0] == study.last_seq:
        return known[1]
    blocks: Blocks = defaultdict(list)
    _study_lines(blocks, session, study)
    _site_lines(blocks, session, study.study_id)
    _counter_lines(blocks, session, study.study_id)
    made = {name: "\n".join(lines) for name, lines in blocks.items() if lines}
    plane.rendered[study.study_id] = (study.last_seq, made)
    return made


def _study_lines(blocks: Blocks, session: Session, study: Study) -> None:
    own = f'study="{study.study_id}"'
    settings = StudySettings.model_validate_json(study.settings)

    def put(metric: Metric, value: float | None, more: str = "") -> None:
        if value is not None:
            blocks[metric.name].append(f"{metric.name}{{{own}{more}}} {value!r}")

    for state in StudyState:
        put(metrics.STUDY_STATE, int(study.state == state), f',state="{state}"')
    put(metrics.STUDY_PLANNED_ROUNDS, study.rounds_total)
    put(metrics.STUDY_ROUND, study.round)
    put(metrics.STUDY_MINIMUM_SITES, settings.rounds.minimum_sites)
    put(metrics.STUDY_REMAINING, remaining_seconds(session, study))
    put(metrics.STUDY_LAST_EVENT, study.last_event_at)
    put(metrics.STUDY_INTERRUPTIONS, study.interruptions)
    put(metrics.STUDY_FLOWER_BYTES, study.flower_bytes_in, ',direction="up"')
    put(metrics.STUDY_FLOWER_BYTES, study.flower_bytes_out, ',direction="down"')
    put(metrics.STUDY_FORECAST_BYTES, study.forecast_bytes_up, ',direction="up"')
    put(metrics.STUDY_FORECAST_BYTES, study.forecast_bytes_down, ',direction="down"')
    put(metrics.STUDY_FORECAST_ROUND, study.forecast_round_seconds)
    put(metrics.CAPTURED_ENERGY, study.captured_energy)
    put(metrics.ROUND_RUNNING, int(study.deadline_at is not None))
    newest = session.get(Round, (study.study_id, study.round))
    if newest is not None:
        put(metrics.ROUND_STARTED, newest.started_at)
        put(metrics.ROUND_DEADLINE, newest.deadline_at)
        for outcome, count in _outcomes(session, study, newest.sites_asked):
            put(metrics.ROUND_SITES, count, f',outcome="{outcome}"')
    done = session.scalar(_newest_finished(study.study_id))
    if done is not None:
        put(metrics.TRAIN_LOSS, done.train_loss)
        put(metrics.EVALUATION_LOSS, done.eval_loss)
        put(metrics.EVALUATION_ACCURACY, done.eval_accuracy)
        put(metrics.UPDATE_NORM, done.update_norm)


def _newest_finished(study_id: str) -> Select[Round]:
    return (
        select(Round)
        .where(Round.study_id == study_id, Round.finished_at.is_not(None))
        .order_by(Round.round.desc())
        .limit(1)
    )


def _outcomes(session: Session, study: Study, asked: int) -> list[tuple[str, int]]:
    rows = session.execute(
        select(SiteRound.outcome, func.count())
        .where(
            SiteRound.study_id == study.study_id,
            SiteRound.round == study.round,
            SiteRound.task == "train",
        )
        .group_by(SiteRound.outcome)
    )
    counts = {row[0]: int(row[1]) for row in rows}
    pending = max(0, asked - sum(counts.values())) if study.deadline_at is not None else 0
    return [*((str(name), counts.get(name, 0)) for name in SiteOutcome), ("pending", pending)]


_SITE_FIGURES: Final = (
    (metrics.SITE_TRAIN_LOSS, SiteTotal.train_loss),
    (metrics.SITE_EVALUATION_LOSS, SiteTotal.eval_loss),
    (metrics.SITE_EVALUATION_ACCURACY, SiteTotal.eval_accuracy),
    (metrics.SITE_UPDATE_NORM, SiteTotal.update_norm),
    (metrics.SITE_ROUND, SiteTotal.seconds),
    (metrics.SITE_LINK_RATE, SiteTotal.link_bytes_per_second),
    (metrics.SITE_MISSED, SiteTotal.rounds_missed),
)


def _site_lines(blocks: Blocks, session: Session, study_id: str) -> None:
    rows = session.execute(
        select(SiteTotal.site, *(column for _, column in _SITE_FIGURES))
        .where(SiteTotal.study_id == study_id)
        .order_by(SiteTotal.site)
    ).all()
    for place, (metric, _) in enumerate(_SITE_FIGURES, start=1):
        head = f'{metric.name}{{study="{study_id}",site="'
        blocks[metric.name] += [
            f'{head}{row[0]}"}} {row[place]!r}' for row in rows if row[place] is not None
        ]


def _counter_lines(blocks: Blocks, session: Session, study_id: str) -> None:
    """Counters as they are kept; a histogram's buckets are kept apart and summed up here."""
    condition: Any = Counter.study_id == study_id
    if not study_id:  # what is nobody's study's: refusals, audit
        condition = or_(Counter.study_id == "", Counter.study_id.is_(None))
    rows = session.execute(
        select(Counter.metric, Counter.labels, Counter.value)
        .where(condition)
        .order_by(Counter.metric, Counter.labels)
    ).all()
    buckets: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for name, labelled, value in rows:
        family = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        if name.endswith("_bucket"):
            own, _, bound = labelled.rpartition(',le="')
            buckets[family, own][bound.rstrip('"')] = value
        else:
            blocks[family if family in ALL else name].append(f"{name}{{{labelled}}} {value!r}")
    for (family, own), found in buckets.items():
        bounds = (
            metrics.ROUND_BUCKETS
            if family == metrics.ROUND_DURATION.name
            else metrics.PHASE_BUCKETS
        )
        total = 0.0
        for bound in (*(f"{bound:g}" for bound in bounds), "+Inf"):
            total += found.get(bound, 0.0)
            blocks[family].append(f'{family}_bucket{{{own},le="{bound}"}} {total!r}')


def _own_lines(blocks: Blocks, plane: Plane) -> None:
    def put(metric: Metric, value: float, labelled: str = "") -> None:
        blocks[metric.name].append(f"{metric.name}{{{labelled}}} {value!r}")

    registry = plane.enrolled.registry()
    active = len(registry.active())
    put(metrics.AGGREGATOR_SEEN, plane.aggregator_seen_at)
    put(metrics.SITES_ENROLLED, active, 'status="active"')
    put(metrics.SITES_ENROLLED, len(registry.sites) - active, 'status="revoked"')
    put(metrics.EVENT_STREAMS, plane.bell.streams)
    free, size = plane.disk()
    put(metrics.STATE_DISK_FREE, free)
    put(metrics.STATE_DISK_SIZE, size)
    for name, known in sorted(validities(plane.settings, registry).items()):
        put(metrics.CERTIFICATE_NOT_AFTER, known.end, f'certificate="{name}"')
        if known.begin is not None:
            put(metrics.CERTIFICATE_NOT_BEFORE, known.begin, f'certificate="{name}"')
    listed = plane.settings.revocation_list and of_lists(plane.settings.revocation_list)
    if listed:
        put(metrics.REVOCATION_LIST_END, listed.end)
