"""Server-sent events: what happens, as it happens, resumable from the last id that arrived.

`event: event` carries an id and is never lost: a client that comes back with Last-Event-ID gets
what it missed. `event: nodes` carries hospitals whose report is new; it has no id, because only
the newest matters.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from starlette.concurrency import run_in_threadpool

from . import reading
from .models import Node
from .plane import Plane
from .views import EventView

KEEP_ALIVE_SECONDS: Final = 15.0
NODES_EVERY_SECONDS: Final = 1.0  # a thousand hospitals report 500 times a second; eyes need one
BATCH: Final = 200


async def follow(
    plane: Plane,
    *,
    cursor: int,
    study_id: str | None,
    allowed: Callable[[], bool],
) -> AsyncIterator[str]:
    """The text of the stream, until the client leaves, may no longer read, or we shut down."""
    waiter = plane.bell.join()
    version, nodes_at, checked_at = 0, 0.0, time.monotonic()
    try:
        yield "retry: 2000\n\n"
        while not plane.bell.closing:
            waiter.clear()
            found = await run_in_threadpool(_events, plane, cursor, study_id)
            for view in found:
                cursor = view.id
                yield f"id: {view.id}\nevent: event\ndata: {view.model_dump_json()}\n\n"
            if time.monotonic() - nodes_at >= NODES_EVERY_SECONDS:
                nodes_at = time.monotonic()
                version, text = await run_in_threadpool(_nodes, plane, version)
                if text:
                    yield f"event: nodes\ndata: {text}\n\n"
            if time.monotonic() - checked_at >= KEEP_ALIVE_SECONDS:
                checked_at = time.monotonic()
                if not await run_in_threadpool(allowed):
                    return
                yield ": still here\n\n"
            if len(found) < BATCH:
                await _wait(waiter)
    finally:
        plane.bell.leave(waiter)


async def _wait(waiter: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(waiter.wait(), timeout=NODES_EVERY_SECONDS)
    except TimeoutError:
        return


def _events(plane: Plane, cursor: int, study_id: str | None) -> list[EventView]:
    with plane.database.reading() as session:
        return reading.events(session, study_id=study_id, after=cursor, limit=BATCH).items


def _nodes(plane: Plane, version: int) -> tuple[int, str]:
    newest = plane.reports.version
    fresh = plane.reports.since(version)
    if not fresh:
        return newest, ""
    registry, now = plane.enrolled.registry(), time.time()
    with plane.database.reading() as session:
        views = [
            reading.node_view(
                report.progress.site,
                session.get(Node, report.progress.site),
                report,
                registry,
                now,
            ).model_dump(mode="json")
            for report in fresh
        ]
    return newest, json.dumps(views, separators=(",", ":"))
