"""Events: kept once, in order, never with a hole."""

import httpx

from protocol.control import EVENTS, INGEST_EVENTS, STUDIES, Role
from protocol.states import Reason, SiteOutcome

from .factories import SITES, Story
from .service import Service


def test_a_study_is_read_back_as_it_was_told(service: Service) -> None:
    """Every event of a study is kept, and its rounds, sites and bytes follow from them."""
    story = Story("told-000001")
    events = story.whole(rounds=5)
    assert service.send(events) == len(events)
    study = service.get(f"{STUDIES}/told-000001")
    assert study["state"] == "finished"
    assert study["rounds_done"] == 5
    assert [item["round"] for item in study["rounds"]] == [1, 2, 3, 4, 5]
    assert study["eval_accuracy"] == 0.6
    assert {item["site"] for item in study["sites"]} == set(SITES)
    assert study["bytes_up"] == len(SITES) * (5 * 100_000 + 2_000)
    kept = service.get(EVENTS, study="told-000001", limit=500)["items"]
    assert [item["event"] for item in kept] == [event.model_dump(mode="json") for event in events]


def test_an_event_sent_twice_is_kept_once(service: Service) -> None:
    """The supervisor repeats what was not acknowledged; nothing is counted again."""
    events = Story("twice-000001").whole(rounds=2)
    assert service.send(events) == len(events)
    before = service.get(f"{STUDIES}/twice-000001")
    assert service.send(events) == 0
    assert service.get(f"{STUDIES}/twice-000001") == before


def test_a_hole_is_refused_and_named(service: Service) -> None:
    """An event after a hole is refused with the number that is expected, and nothing is kept."""
    events = Story("hole-000001").whole(rounds=1)
    service.send(events[:2])
    answer = _post(service, [event.model_dump(mode="json") for event in events[3:]])
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:fedward:problem:sequence-gap"
    assert answer.json()["expected_seq"] == 3
    assert service.get(f"{STUDIES}/hole-000001")["last_seq"] == 2


def test_another_event_under_a_taken_number_is_refused(service: Service) -> None:
    """A journal that was lost and begun again is noticed."""
    story = Story("other-000001")
    service.send([story.queued(), story.started()])
    story.seq = 1
    answer = _post(service, [story.started(attempt=9).model_dump(mode="json")])
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:fedward:problem:event-conflict"


def test_a_repeated_round_shows_its_last_attempt(service: Service) -> None:
    """After an interruption a round is done again; its bytes were sent twice and count twice."""
    story = Story("again-000001")
    service.send(
        [
            *story.beginning(),
            story.round_started(1),
            story.missing("alder", 1, SiteOutcome.REFUSED, reason=Reason.NOT_FINITE, bytes_up=10),
            *story.a_round(1),
        ]
    )
    found = service.get(f"{STUDIES}/again-000001/rounds")["items"]
    assert found[0]["attempts"] == 2
    assert [site["outcome"] for site in found[0]["sites"]] == ["ok"] * 3
    assert found[0]["bytes_up"] == 300_010


def _post(service: Service, body: object) -> httpx.Response:
    with service.client(Role.AGGREGATOR) as client:
        return client.post(INGEST_EVENTS, json=body)
