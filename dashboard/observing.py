"""Routes that only look: nodes, events, the live stream, the audit list."""

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from protocol.control import API, EVENT_STREAM, EVENTS, NODES
from protocol.study import Name

from . import reading, views
from .depends import (
    Cursor,
    Limit,
    Reader,
    SiteCursor,
    SiteFilter,
    StudyFilter,
    ThePlane,
)
from .expiry import certificate_views
from .problems import Problem, documented
from .stream import follow

router = APIRouter()

_READ = documented(401, 403, 422)


@router.get(NODES, tags=["hospitals"], responses=_READ)
def list_nodes(
    plane: ThePlane, _by: Reader, after: SiteCursor = None, limit: Limit = 500
) -> views.Page[views.NodeView]:
    """Every hospital, by name."""
    with plane.database.reading() as session:
        return reading.nodes(
            session, plane.enrolled.registry(), plane.reports.all(), after=after, limit=limit
        )


@router.get(NODES + "/{site}", tags=["hospitals"], responses=documented(401, 403, 404, 422))
def read_node(site: Name, plane: ThePlane, _by: Reader) -> views.NodeView:
    """One hospital."""
    with plane.database.reading() as session:
        return reading.node(session, plane.enrolled.registry(), plane.reports.all(), site)


@router.get(EVENTS, tags=["events"], responses=_READ)
def list_events(
    plane: ThePlane,
    _by: Reader,
    study: StudyFilter = None,
    site: SiteFilter = None,
    after: Cursor = None,
    limit: Limit = 100,
    order: Annotated[
        Literal["oldest", "newest"], Query(description="newest first pages back in time")
    ] = "oldest",
) -> views.Page[views.EventView]:
    """Events in the order in which they came, or newest first."""
    with plane.database.reading() as session:
        if order == "newest":
            return reading.newest_events(
                session, study_id=study, site=site, before=after, limit=limit
            )
        return reading.events(session, study_id=study, site=site, after=after or 0, limit=limit)


@router.get(
    EVENT_STREAM,
    tags=["events"],
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Server-sent events: `event` (with an id to resume by) and `nodes`",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **documented(401, 403, 422, 503),
    },
)
def stream_events(
    request: Request,
    plane: ThePlane,
    by: Reader,
    study: StudyFilter = None,
    after: Annotated[
        int | None, Query(ge=0, lt=2**53, description="begin after this id; now, when absent")
    ] = None,
    last_event_id: Annotated[str | None, Header(description="what a browser resumes by")] = None,
) -> StreamingResponse:
    """Events as they happen, and hospitals' newest reports."""
    if plane.bell.streams >= plane.settings.limits.streams:
        raise Problem(503, "too-many-streams", "too many live streams are open; try again later")
    if last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit():
        after = min(int(last_event_id[:16]), 2**53)
    if after is None:
        with plane.database.reading() as session:
            after = reading.last_event_id(session)

    def allowed() -> bool:
        try:
            return plane.access.principal(request).role is by.role
        except Problem:
            return False

    return StreamingResponse(
        follow(plane, cursor=after, study_id=study, allowed=allowed),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get(API + "/certificates", tags=["security"], responses=_READ)
def list_certificates(plane: ThePlane, _by: Reader) -> list[views.CertificateView]:
    """When each certificate ends, the first in front."""
    return certificate_views(plane.settings, plane.enrolled.registry(), time.time())


@router.get(API + "/audit", tags=["security"], responses=_READ)
def list_audit(
    plane: ThePlane, _by: Reader, after: Cursor = None, limit: Limit = 100
) -> views.Page[views.AuditView]:
    """Who did what, newest first."""
    with plane.database.reading() as session:
        return reading.audit(session, before=after, limit=limit)
