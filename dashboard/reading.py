"""What the API and the page read: queries, and rows made into views."""

import time
from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from protocol.events import EVENT
from protocol.messages import Frozen
from protocol.metrics import NODE_SILENT_SECONDS
from protocol.registry import Registry
from protocol.states import StudyState
from protocol.study import StudySettings

from . import views
from .live import Report
from .models import Audit, Node, Round, SiteRound, SiteTotal, StoredCommand, StoredEvent, Study
from .problems import Problem

View = TypeVar("View", bound=Frozen)
Item = TypeVar("Item")

FORECAST_ROUNDS = 10


def paged(items: list[Item], limit: int, cursor: Any) -> tuple[list[Item], str | None]:
    """Cut a list that was fetched with one item too many; `cursor` makes an item's cursor."""
    if len(items) <= limit:
        return items, None
    return items[:limit], str(cursor(items[limit - 1]))


def must_study(session: Session, study_id: str) -> Study:
    """The study, or a 404."""
    study = session.get(Study, study_id)
    if study is None:
        raise Problem(404, "no-such-study", f"no study is called {study_id!r}")
    return study


def studies(
    session: Session, *, state: StudyState | None, after: str | None, limit: int
) -> views.Page[views.StudyBrief]:
    """Studies, newest first."""
    query = select(Study).order_by(Study.submitted_at.desc(), Study.study_id.desc())
    if state is not None:
        query = query.where(Study.state == state)
    if after is not None:
        last = must_study(session, after)
        query = query.where(
            (Study.submitted_at < last.submitted_at)
            | ((Study.submitted_at == last.submitted_at) & (Study.study_id < last.study_id))
        )
    rows = list(session.scalars(query.limit(limit + 1)))
    rows, following = paged(rows, limit, lambda row: row.study_id)
    return views.Page(
        items=[views.StudyBrief(**_brief(session, row)) for row in rows], next=following
    )


def study(session: Session, study_id: str) -> views.StudyDetail:
    """One study in full."""
    row = must_study(session, study_id)
    newest = session.scalars(
        select(Round).where(Round.study_id == study_id).order_by(Round.round.desc()).limit(10)
    )
    return views.StudyDetail(
        **_brief(session, row),
        settings=StudySettings.model_validate_json(row.settings),
        flower_run_id=row.flower_run_id,
        attempt=row.attempt,
        flower_bytes_in=row.flower_bytes_in,
        flower_bytes_out=row.flower_bytes_out,
        forecast_bytes_up=row.forecast_bytes_up,
        forecast_bytes_down=row.forecast_bytes_down,
        forecast_round_seconds=row.forecast_round_seconds,
        last_seq=row.last_seq,
        last_event_at=row.last_event_at,
        rounds=_with_sites(session, study_id, list(newest)[::-1]),
        sites=sites(session, study_id),
    )


def sites(session: Session, study_id: str) -> list[views.SiteView]:
    """Every site of a study, by name."""
    rows = session.scalars(
        select(SiteTotal).where(SiteTotal.study_id == study_id).order_by(SiteTotal.site)
    )
    return [_view(views.SiteView, row) for row in rows]


def rounds(
    session: Session, study_id: str, *, after: int, limit: int, with_sites: bool
) -> views.Page[views.RoundView]:
    """Rounds of a study, oldest first."""
    must_study(session, study_id)
    rows = list(
        session.scalars(
            select(Round)
            .where(Round.study_id == study_id, Round.round > after)
            .order_by(Round.round)
            .limit(limit + 1)
        )
    )
    rows, following = paged(rows, limit, lambda row: row.round)
    if with_sites:
        return views.Page(items=_with_sites(session, study_id, rows), next=following)
    return views.Page(items=[_view(views.RoundView, row) for row in rows], next=following)


def site_rounds(
    session: Session, study_id: str, site: str, *, after: int, limit: int
) -> views.Page[views.SiteRoundView]:
    """What one site did in each round, oldest first."""
    must_study(session, study_id)
    rows = list(
        session.scalars(
            select(SiteRound)
            .where(
                SiteRound.study_id == study_id,
                SiteRound.site == site,
                SiteRound.task == "train",
                SiteRound.round > after,
            )
            .order_by(SiteRound.round)
            .limit(limit + 1)
        )
    )
    rows, following = paged(rows, limit, lambda row: row.round)
    return views.Page(items=[_view(views.SiteRoundView, row) for row in rows], next=following)


def curves(session: Session, study_id: str, *, site: str | None, points: int) -> views.Curves:
    """Columns for charts, of all sites together or of one."""
    known = must_study(session, study_id)
    # Every n-th round counted back from the newest, so that the newest is always among them.
    newest = known.round if site is not None else known.rounds_done
    stride = max(1, -(-newest // points))
    table: Any = Round if site is None else SiteRound
    query = (
        select(
            table.round,
            table.train_loss,
            table.eval_loss,
            table.eval_accuracy,
            table.bytes_up,
            table.bytes_down,
            table.seconds,
        )
        .where(table.study_id == study_id, (newest - table.round) % stride == 0)
        .order_by(table.round)
    )
    if site is None:
        query = query.where(Round.finished_at.is_not(None))  # a running round's sums mislead
    else:
        query = query.where(SiteRound.site == site, SiteRound.task == "train")
    columns = list(zip(*session.execute(query).all(), strict=True)) or [()] * 7
    names = list(views.Curves.model_fields)
    return views.Curves(**{name: list(column) for name, column in zip(names, columns, strict=True)})


def events(
    session: Session,
    *,
    study_id: str | None,
    site: str | None = None,
    after: int,
    limit: int,
) -> views.Page[views.EventView]:
    """Events in the order in which they came."""
    rows = list(session.scalars(_event_query(study_id, site, after=after).limit(limit + 1)))
    rows, following = paged(rows, limit, lambda row: row.id)
    return views.Page(items=[event_view(row) for row in rows], next=following)


def newest_events(
    session: Session, *, study_id: str | None, site: str | None, before: int | None, limit: int
) -> views.Page[views.EventView]:
    """Events, newest first; the cursor goes back in time."""
    query = _event_query(study_id, site, after=0).order_by(None).order_by(StoredEvent.id.desc())
    if before is not None:
        query = query.where(StoredEvent.id < before)
    rows = list(session.scalars(query.limit(limit + 1)))
    rows, following = paged(rows, limit, lambda row: row.id)
    return views.Page(items=[event_view(row) for row in rows], next=following)


def last_event_id(session: Session) -> int:
    """The newest event's cursor."""
    return session.scalar(select(func.max(StoredEvent.id))) or 0


def commands(session: Session, after: int) -> list[tuple[StoredCommand, str]]:
    """Commands after a number, each with its study's settings."""
    rows = session.execute(
        select(StoredCommand, Study.settings)
        .join(Study, Study.study_id == StoredCommand.study_id)
        .where(StoredCommand.id > after)
        .order_by(StoredCommand.id)
        .limit(100)
    )
    return [(row[0], row[1]) for row in rows]


def nodes(
    session: Session,
    registry: Registry,
    reports: dict[str, Report],
    *,
    after: str | None,
    limit: int,
) -> views.Page[views.NodeView]:
    """Every hospital that is enrolled, was seen or reported, by name."""
    known = {row.site: row for row in session.scalars(select(Node))}
    names = sorted(set(known) | set(reports) | set(registry.sites))
    if after is not None:
        names = [name for name in names if name > after]
    now = time.time()
    chosen, following = paged(names[: limit + 1], limit, str)
    return views.Page(
        items=[
            node_view(name, known.get(name), reports.get(name), registry, now) for name in chosen
        ],
        next=following,
    )


def node(
    session: Session, registry: Registry, reports: dict[str, Report], site: str
) -> views.NodeView:
    """One hospital."""
    row = session.get(Node, site)
    if row is None and site not in reports and site not in registry.sites:
        raise Problem(404, "no-such-site", f"no hospital is called {site!r}")
    return node_view(site, row, reports.get(site), registry, time.time())


def node_view(
    site: str, row: Node | None, report: Report | None, registry: Registry, now: float
) -> views.NodeView:
    """Put together what is known of one hospital."""
    enrolled = registry.sites.get(site)
    return views.NodeView(
        site=site,
        enrolled=enrolled is not None,
        revoked=enrolled is not None and enrolled.revoked_at is not None,
        up=is_up(row, report, now),
        status=row.status if row is not None else "unregistered",
        node_id=row.node_id if row is not None else "",
        snapshot_at=row.received_at if row is not None else None,
        last_heartbeat_at=row.last_heartbeat_at if row is not None else None,
        last_pull_at=row.last_pull_at if row is not None else None,
        wire_bytes_in=row.wire_in_base + row.wire_in if row is not None else 0,
        wire_bytes_out=row.wire_out_base + row.wire_out if row is not None else 0,
        refused_requests=row.refused_base + row.refused if row is not None else 0,
        last_report_at=report.received_at if report is not None else None,
        clock_offset_seconds=report.clock_offset if report is not None else None,
        trainer_restarts=report.trainer_restarts if report is not None else 0,
        progress=report.progress if report is not None else None,
    )


def is_up(row: Node | None, report: Report | None, now: float) -> bool:
    """Flower's word is not enough: a wedged node stays online, so it must have spoken lately."""
    if row is None or row.status != "online":
        return False
    spoke = [row.last_pull_at or 0.0, report.received_at if report is not None else 0.0]
    return now - max(spoke) < NODE_SILENT_SECONDS


def audit(session: Session, *, before: int | None, limit: int) -> views.Page[views.AuditView]:
    """The audit list, newest first."""
    query = select(Audit).order_by(Audit.id.desc())
    if before is not None:
        query = query.where(Audit.id < before)
    rows = list(session.scalars(query.limit(limit + 1)))
    rows, following = paged(rows, limit, lambda row: row.id)
    return views.Page(items=[_view(views.AuditView, row) for row in rows], next=following)


def event_view(row: StoredEvent) -> views.EventView:
    """A stored event as it is shown."""
    return views.EventView(
        id=row.id, received_at=row.received_at, event=EVENT.validate_json(row.body)
    )


def remaining_seconds(session: Session, row: Study) -> float | None:
    """Rounds left times the mean of the last ten; None where nothing can be said."""
    if StudyState(row.state).ended or row.rounds_done == 0:
        return None
    newest = session.scalars(
        select(Round.seconds)
        .where(Round.study_id == row.study_id, Round.seconds.is_not(None))
        .order_by(Round.round.desc())
        .limit(FORECAST_ROUNDS)
    ).all()
    lengths = [seconds for seconds in newest if seconds is not None]
    if not lengths:
        return None
    return max(0, row.rounds_total - row.rounds_done) * sum(lengths) / len(lengths)


def _brief(session: Session, row: Study) -> dict[str, Any]:
    measured = session.execute(
        select(Round.train_loss, Round.eval_loss, Round.eval_accuracy)
        .where(Round.study_id == row.study_id, Round.finished_at.is_not(None))
        .order_by(Round.round.desc())
        .limit(1)
    ).first()
    up, down = session.execute(
        select(func.sum(SiteTotal.bytes_up), func.sum(SiteTotal.bytes_down)).where(
            SiteTotal.study_id == row.study_id
        )
    ).one()
    own = {name: getattr(row, name) for name in views.StudyBrief.model_fields if hasattr(row, name)}
    return own | {
        "remaining_seconds": remaining_seconds(session, row),
        "train_loss": measured.train_loss if measured is not None else None,
        "eval_loss": measured.eval_loss if measured is not None else None,
        "eval_accuracy": measured.eval_accuracy if measured is not None else None,
        "bytes_up": int(up or 0),
        "bytes_down": int(down or 0),
    }


def _event_query(study_id: str | None, site: str | None, *, after: int) -> Any:
    query = select(StoredEvent).where(StoredEvent.id > after).order_by(StoredEvent.id)
    if study_id is not None:
        query = query.where(StoredEvent.study_id == study_id)
    if site is not None:
        query = query.where(StoredEvent.site == site)
    return query


def _with_sites(session: Session, study_id: str, rows: Sequence[Round]) -> list[views.RoundView]:
    if not rows:
        return []
    found: dict[int, list[views.SiteRoundView]] = {row.round: [] for row in rows}
    results = session.scalars(
        select(SiteRound)
        .where(
            SiteRound.study_id == study_id,
            SiteRound.task == "train",
            SiteRound.round.in_(found),
        )
        .order_by(SiteRound.site)
    )
    for result in results:
        found[result.round].append(_view(views.SiteRoundView, result))
    return [_view(views.RoundView, row, sites=found[row.round]) for row in rows]


def _view(model: type[View], row: Any, **more: Any) -> View:
    own = {name: getattr(row, name) for name in model.model_fields if hasattr(row, name)}
    made: View = model(**(own | more))
    return made
