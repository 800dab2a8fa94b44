"""Routes about studies: submit, stop, list, read."""

import secrets
import time
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from protocol.control import STUDIES, Command, Submission, Submitted
from protocol.events import StudyQueued
from protocol.registry import Registry
from protocol.states import StudyState
from protocol.study import Name, StudyId, StudySettings

from . import examples, reading, views
from .access import address_of
from .depends import Coordinator, Limit, Reader, StudyCursor, ThePlane
from .expiry import check_study
from .models import StoredCommand
from .problems import Problem, documented
from .recording import make_study

router = APIRouter(tags=["studies"])

_READ = documented(401, 403, 404, 422)


@router.post(STUDIES, status_code=201, responses=documented(400, 401, 403, 409, 413, 422))
def submit(
    submission: Annotated[Submission, Body(openapi_examples=examples.SUBMISSION)],
    request: Request,
    plane: ThePlane,
    by: Coordinator,
) -> Submitted:
    """Queue a study; the supervisor starts it."""
    settings = submission.settings
    _check_sites(settings, plane.enrolled.registry())
    study_id = f"{settings.name}-{secrets.token_hex(3)}"
    now = time.time()
    with plane.database.reading() as session:
        check_study(session, settings, plane.settings, plane.enrolled.registry())
    with plane.database.writing() as session:
        queued = StudyQueued(study_id=study_id, seq=1, at=now, settings=settings)
        session.add(make_study(queued, submitted_at=now))
        session.add(_command(session, "start", study_id, now))
    plane.access.audit(by.role, "study_submitted", study_id, address_of(request))
    plane.bell.ring()
    return Submitted(study_id=study_id)


@router.post(
    STUDIES + "/{study_id}/stop", status_code=202, responses=documented(401, 403, 404, 409, 422)
)
def stop(study_id: StudyId, request: Request, plane: ThePlane, by: Coordinator) -> Command:
    """Ask the supervisor to stop a study; asking again changes nothing."""
    with plane.database.writing() as session:
        study = reading.must_study(session, study_id)
        if StudyState(study.state).ended:
            raise Problem(409, "study-ended", f"study {study_id} has already {study.state}")
        command = _stop_command(session, study_id)
        if study.stop_requested_at is None:
            study.stop_requested_at = command.at
            plane.bell.ring()
        answer = Command(id=command.id, action="stop", study_id=study_id)
    plane.access.audit(by.role, "study_stopped", study_id, address_of(request))
    return answer


@router.get(STUDIES, responses=_READ)
def list_studies(
    plane: ThePlane,
    _by: Reader,
    state: Annotated[StudyState | None, Query(description="only those in this state")] = None,
    after: StudyCursor = None,
    limit: Limit = 50,
) -> views.Page[views.StudyBrief]:
    """Studies, newest first."""
    with plane.database.reading() as session:
        return reading.studies(session, state=state, after=after, limit=limit)


@router.get(STUDIES + "/{study_id}", responses=_READ)
def read_study(study_id: StudyId, plane: ThePlane, _by: Reader) -> views.StudyDetail:
    """One study: state, settings, the newest rounds, every site."""
    with plane.database.reading() as session:
        return reading.study(session, study_id)


@router.get(STUDIES + "/{study_id}/rounds", responses=_READ)
def list_rounds(
    study_id: StudyId,
    plane: ThePlane,
    _by: Reader,
    after: Annotated[int, Query(ge=-1, lt=2**53, description="rounds after this one")] = -1,
    limit: Limit = 50,
    sites: Annotated[bool, Query(description="with what each site did")] = True,
) -> views.Page[views.RoundView]:
    """Rounds, oldest first."""
    with plane.database.reading() as session:
        return reading.rounds(session, study_id, after=after, limit=limit, with_sites=sites)


@router.get(STUDIES + "/{study_id}/sites/{site}/rounds", responses=_READ)
def list_site_rounds(
    study_id: StudyId,
    site: Name,
    plane: ThePlane,
    _by: Reader,
    after: Annotated[int, Query(ge=-1, lt=2**53, description="rounds after this one")] = -1,
    limit: Limit = 50,
) -> views.Page[views.SiteRoundView]:
    """What one hospital did in each round, oldest first."""
    with plane.database.reading() as session:
        return reading.site_rounds(session, study_id, site, after=after, limit=limit)


@router.get(STUDIES + "/{study_id}/curves", responses=_READ)
def read_curves(
    study_id: StudyId,
    plane: ThePlane,
    _by: Reader,
    site: Annotated[Name | None, Query(description="one hospital's; all together else")] = None,
    points: Annotated[int, Query(ge=2, le=5_000, description="rounds at most")] = 500,
) -> views.Curves:
    """Columns for charts."""
    with plane.database.reading() as session:
        return reading.curves(session, study_id, site=site, points=points)


def _check_sites(settings: StudySettings, registry: Registry) -> None:
    active = registry.active()
    for site in settings.sites:
        if site not in active:
            word = "was revoked" if site in registry.sites else "is not enrolled"
            raise Problem(
                422,
                "unknown-site",
                f"sites: {site!r} {word}; the enrolled hospitals are "
                f"{', '.join(sorted(active)[:20]) or 'none'}",
            )


def _stop_command(session: Session, study_id: str) -> StoredCommand:
    known = session.scalar(
        select(StoredCommand).where(
            StoredCommand.study_id == study_id, StoredCommand.action == "stop"
        )
    )
    if known is None:
        known = _command(session, "stop", study_id, time.time())
        session.add(known)
        session.flush()
    return known


def _command(session: Session, action: str, study_id: str, now: float) -> StoredCommand:
    """A new command, with a number above all that were ever given.

    The supervisor asks for those above the newest it did. A database restored from a backup would
    give numbers again that it has done; so they follow the clock.
    """
    newest = session.scalar(select(func.max(StoredCommand.id))) or 0
    return StoredCommand(
        id=max(newest + 1, int(1000 * now)), action=action, study_id=study_id, at=now
    )
