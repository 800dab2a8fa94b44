"""Routes of the aggregator and of the hospitals' links: events, nodes, commands, reports."""

import time
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request
from starlette.concurrency import run_in_threadpool

from protocol.control import (
    COMMANDS,
    INGEST_EVENTS,
    INGEST_NODES,
    MAX_PROGRESS_BYTES,
    SITE_PROGRESS,
    Command,
    NodeSnapshot,
    Stored,
)
from protocol.errors import ProtocolError
from protocol.events import Event
from protocol.study import StudySettings

from . import examples, reading
from .depends import Aggregator, ThePlane
from .plane import Plane, store_nodes
from .problems import Problem, documented
from .recording import health_in, record

router = APIRouter()

MAX_BATCH = 5_000


@router.post(INGEST_EVENTS, tags=["aggregator"], responses=documented(400, 401, 403, 409, 413, 422))
def ingest_events(
    events: Annotated[list[Event], Body(max_length=MAX_BATCH, openapi_examples=examples.EVENTS)],
    plane: ThePlane,
    _by: Aggregator,
) -> Stored:
    """Keep events: each (study_id, seq) once, none after a hole."""
    plane.hear_aggregator()
    with plane.database.writing() as session:
        kept = len(record(session, events))
    for site, at, health in health_in(events):
        plane.reports.note_health(site, at, health)
    plane.reports.flush()
    if kept:
        plane.bell.ring()
    return Stored(stored=kept)


@router.post(INGEST_NODES, tags=["aggregator"], responses=documented(400, 401, 403, 413, 422))
def ingest_nodes(
    snapshots: Annotated[
        list[NodeSnapshot], Body(max_length=MAX_BATCH, openapi_examples=examples.NODES)
    ],
    plane: ThePlane,
    _by: Aggregator,
) -> Stored:
    """Keep the newest snapshot of each node."""
    plane.hear_aggregator()
    with plane.database.writing() as session:
        return Stored(stored=store_nodes(session, snapshots, time.time()))


@router.get(COMMANDS, tags=["aggregator"], responses=documented(401, 403, 422))
def read_commands(
    plane: ThePlane,
    _by: Aggregator,
    after: Annotated[int, Query(ge=0, lt=2**53, description="the newest id that is known")] = 0,
) -> list[Command]:
    """The commands after a number, oldest first, at most 100."""
    plane.hear_aggregator()
    with plane.database.reading() as session:
        return [
            Command.model_validate(
                {
                    "id": row.id,
                    "action": row.action,
                    "study_id": row.study_id,
                    "settings": StudySettings.model_validate_json(settings)
                    if row.action == "start"
                    else None,
                }
            )
            for row, settings in reading.commands(session, after)
        ]


@router.post(
    SITE_PROGRESS,
    tags=["hospital"],
    status_code=204,
    responses=documented(400, 401, 403, 409, 413),
    openapi_extra={
        "requestBody": {
            "description": "a frame (protocol.framing) of kind PROGRESS, signed by the site",
            "required": True,
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        }
    },
)
async def site_progress(request: Request, plane: ThePlane) -> None:
    """Take a hospital's report. No token: the site's own signature says who it is from."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_PROGRESS_BYTES:
            raise Problem(413, "too-large", f"a report has at most {MAX_PROGRESS_BYTES} bytes")
    await run_in_threadpool(_accept, plane, bytes(body))


def _accept(plane: Plane, body: bytes) -> None:
    try:
        plane.reports.accept(body)
    except Problem as problem:
        plane.access.refused("report", problem.kind.replace("-", "_"))
        raise
    except ProtocolError:
        plane.access.refused("report", "malformed")
        raise
