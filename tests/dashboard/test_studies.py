"""Studies: submitted, stopped, listed; and what the supervisor is told to do."""

import httpx

from protocol.control import COMMANDS, EVENTS, INGEST_NODES, NODES, STUDIES, Role

from .factories import Story, settings, snapshot
from .service import Service


def submit(service: Service, **more: object) -> httpx.Response:
    body = {"settings": settings(**more).model_dump(mode="json")}
    with service.client(Role.COORDINATOR) as client:
        return client.post(STUDIES, json=body)


def commands(service: Service, after: int = 0) -> list[dict[str, object]]:
    with service.client(Role.AGGREGATOR) as client:
        return list(client.get(COMMANDS, params={"after": after}).json())


def test_a_submitted_study_becomes_a_command(fresh: Service) -> None:
    """The supervisor reads what to start, with the settings, and nothing twice."""
    study_id = submit(fresh, name="heart").json()["study_id"]
    assert study_id.startswith("heart-")
    assert len(study_id) == len("heart-") + 6
    (command,) = commands(fresh)
    assert (command["action"], command["study_id"]) == ("start", study_id)
    assert command["settings"] == settings("heart").model_dump(mode="json")
    assert commands(fresh, after=int(str(command["id"]))) == []
    assert fresh.get(f"{STUDIES}/{study_id}")["state"] == "queued"


def test_a_study_is_asked_to_stop_once(fresh: Service) -> None:
    """Asking again gives the same command; an ended study cannot be stopped."""
    study_id = submit(fresh).json()["study_id"]
    with fresh.client(Role.COORDINATOR) as client:
        first = client.post(f"{STUDIES}/{study_id}/stop")
        again = client.post(f"{STUDIES}/{study_id}/stop")
        assert (first.status_code, first.json()) == (202, again.json())
        fresh.send(Story("over-000001").whole(rounds=1))
        ended = client.post(f"{STUDIES}/over-000001/stop")
        assert (ended.status_code, ended.json()["detail"]) == (
            409,
            "study over-000001 has already finished",
        )
    assert [command["action"] for command in commands(fresh)] == ["start", "stop"]


def test_the_events_of_a_submitted_study_continue_it(fresh: Service) -> None:
    """The supervisor's study_queued does not make a second study."""
    study_id = submit(fresh).json()["study_id"]
    fresh.send(Story(study_id).whole(rounds=2))
    assert [item["study_id"] for item in fresh.get(STUDIES)["items"]] == [study_id]


def test_a_study_for_strangers_is_refused_by_name(service: Service) -> None:
    """A misspelt hospital is said before anything starts."""
    answer = submit(service, sites=["alder", "brich"])
    assert answer.status_code == 422
    assert "'brich' is not enrolled" in answer.json()["detail"]


def test_bad_settings_are_refused_with_the_key(service: Service) -> None:
    """The sentence names the key; nothing is queued."""
    body = {"settings": {"name": "UPPER", "model": {"base": "x"}, "rounds": {"count": 0}}}
    with service.client(Role.COORDINATOR) as client:
        answer = client.post(STUDIES, json=body)
    assert answer.status_code == 422
    where = {error["where"] for error in answer.json()["errors"]}
    assert where == {"body.settings.name", "body.settings.rounds.count"}


def test_lists_are_read_page_by_page(fresh: Service) -> None:
    """Studies, rounds, events and hospitals: every item once, in order."""
    for index in range(5):
        fresh.send(Story(f"s{index}-00000{index}", start=1000.0 * (index + 1)).whole(rounds=7))
    paths = (STUDIES, f"{STUDIES}/s0-000000/rounds", EVENTS, NODES)
    for path in paths:
        whole = fresh.get(path, limit=500)["items"]
        found: list[object] = []
        cursor: dict[str, str] = {}
        for _ in range(200):
            page = fresh.get(path, limit=2, **cursor)
            found += page["items"]
            if page["next"] is None:
                break
            cursor = {"after": page["next"]}
        assert found == whole, path
    newest = fresh.get(EVENTS, order="newest", limit=500)["items"]
    assert newest == fresh.get(EVENTS, limit=500)["items"][::-1]


def test_a_thousand_rounds_are_drawn_from_a_hundred_points(fresh: Service) -> None:
    """Charts get evenly chosen rounds, and always the newest."""
    story = Story("long-000001")
    fresh.send([*story.beginning(), *(e for n in range(1, 401) for e in story.a_round(n))])
    curves = fresh.get(f"{STUDIES}/long-000001/curves", points=100)
    assert len(curves["round"]) == 100
    assert curves["round"][-1] == 400
    assert {len(column) for column in curves.values()} == {100}


def test_the_guards_counters_go_on_when_the_superlink_restarts(fresh: Service) -> None:
    """A counter that began again at zero is added to what was counted before."""
    with fresh.client(Role.AGGREGATOR) as client:
        for epoch, count in ((1.0, 100), (1.0, 250), (2.0, 40)):
            node = snapshot("alder", wire_epoch=epoch, wire_bytes_in=count)
            client.post(INGEST_NODES, json=[node.model_dump(mode="json")])
    assert fresh.get(f"{NODES}/alder")["wire_bytes_in"] == 290


def test_an_online_node_that_is_silent_is_not_up(fresh: Service) -> None:
    """A wedged node stays online for Flower; ours is up only if it also works."""
    with fresh.client(Role.AGGREGATOR) as client:
        for site, pulled in (("alder", None), ("birch", snapshot("x").last_pull_at)):
            node = snapshot(site, last_pull_at=pulled)
            client.post(INGEST_NODES, json=[node.model_dump(mode="json")])
    up = {node["site"]: node["up"] for node in fresh.get(NODES)["items"]}
    assert up == {"alder": False, "birch": True, "cedar": False}
