"""The live stream: events as they happen, resumed without a hole."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx

from protocol.control import EVENT_STREAM, EVENTS, SITE_PROGRESS, Role

from .factories import Story
from .service import Service


def listen(response: httpx.Response) -> Iterator[tuple[str, str, Any]]:
    """(event, id, data) of each message."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
        else:
            if "data" in fields:
                yield fields["event"], fields.get("id", ""), json.loads(fields["data"])
            fields = {}


def take(service: Service, count: int, *, kind: str = "event", **how: Any) -> list[Any]:
    """The first `count` messages of a kind: (id, data)."""
    found = []
    with (
        service.client(Role.OPERATOR) as client,
        client.stream("GET", EVENT_STREAM, timeout=20, **how) as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        for name, number, data in listen(response):
            if name == kind:
                found.append((number, data))
            if len(found) == count:
                break
    return found


def test_an_event_arrives_while_one_listens(service: Service) -> None:
    """Within a second, not at the next poll."""
    story = Story("seen-000001")

    def later() -> None:
        time.sleep(0.5)
        service.send([story.queued()])

    threading.Thread(target=later).start()
    begun = time.monotonic()
    ((_, data),) = take(service, 1)
    assert data["event"]["study_id"] == "seen-000001"
    assert time.monotonic() - begun < 5


def test_a_listener_that_comes_back_misses_nothing(service: Service) -> None:
    """Last-Event-ID continues exactly after the event that it names."""
    service.send(Story("back-000001").whole(rounds=2))
    every = [item["id"] for item in service.get(EVENTS, limit=500)["items"]]
    first = take(service, 3, params={"after": 0})
    assert [int(number) for number, _ in first] == every[:3]
    rest = take(service, len(every) - 3, headers={"Last-Event-ID": first[-1][0]})
    assert [int(number) for number, _ in rest] == every[3:]


def test_one_study_can_be_followed_alone(service: Service) -> None:
    """Other studies' events do not come."""
    service.send(Story("loud-000001").whole(rounds=1))
    service.send([Story("calm-000001").queued()])
    ((_, data),) = take(service, 1, params={"after": 0, "study": "calm-000001"})
    assert data["event"]["study_id"] == "calm-000001"


def test_reports_of_hospitals_arrive_too(service: Service) -> None:
    """An hour-long round is not a blank."""
    with service.client(None) as client:
        client.post(SITE_PROGRESS, content=service.hospitals.report("alder", step=8))
    ((_, nodes),) = take(service, 1, kind="nodes")
    assert {node["site"]: node["progress"]["step"] for node in nodes}["alder"] == 8


def test_the_control_plane_stops_while_somebody_listens(fresh: Service) -> None:
    """An open stream does not hold a shutdown up."""
    with fresh.client(Role.OPERATOR) as client, client.stream("GET", EVENT_STREAM) as response:
        assert response.status_code == 200
        begun = time.monotonic()
        assert fresh.stop() == 0
        assert time.monotonic() - begun < 8
