"""SQLite and PostgreSQL keep the same history, whatever is killed."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dashboard.database import Database
from protocol.control import EVENTS, INGEST_EVENTS, NODES, STUDIES, Role
from protocol.errors import SettingsError

from .factories import SITES, Story, batches
from .postgres import missing, postgres
from .service import Service


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    """A control plane on each of the two."""
    if request.param == "sqlite":
        made = Service(tmp_path)
        yield made
        made.stop()
        return
    if missing():
        pytest.skip(missing())
    with postgres() as url:
        made = Service(tmp_path, url=url)
        yield made
        made.stop()


def test_the_history_has_no_hole_and_no_double_after_kills(either: Service) -> None:
    """Killed three times while a study is told, it ends up with each event once, in order."""
    events = Story("kept-000001").whole(rounds=40)
    sender = threading.Thread(target=_send_until_kept, args=(either, events))
    sender.start()
    for _ in range(3):
        time.sleep(0.4)
        either.kill()
        either.start()
    sender.join(timeout=60)
    assert not sender.is_alive()
    kept = either.get(EVENTS, study="kept-000001", limit=500)["items"]
    assert [item["event"] for item in kept] == [event.model_dump(mode="json") for event in events]
    ids = [item["id"] for item in kept]
    assert ids == sorted(set(ids))
    study = either.get(f"{STUDIES}/kept-000001")
    assert study["bytes_up"] == len(SITES) * (40 * 100_000 + 2_000)
    assert study["rounds_done"] == 40


def test_everything_can_be_read(either: Service) -> None:
    """Each route answers from either database."""
    either.send(Story("read-000001").whole(rounds=12))
    either.send_nodes()
    assert [item["study_id"] for item in either.get(STUDIES)["items"]] == ["read-000001"]
    assert len(either.get(f"{STUDIES}/read-000001/rounds", limit=5)["items"]) == 5
    curves = either.get(f"{STUDIES}/read-000001/curves", points=4)
    assert curves["round"][-1] == 12
    assert len(curves["round"]) == 4
    assert len(either.get(f"{STUDIES}/read-000001/sites/alder/rounds")["items"]) == 12
    assert [node["up"] for node in either.get(NODES)["items"]] == [True] * 3
    with either.client(Role.OPERATOR) as client:
        text = client.get("/metrics").text
    assert 'fedward_rounds_total{study="read-000001",result="aggregated"} 12' in text
    assert either.stop() == 0
    either.start()
    assert either.get(f"{STUDIES}/read-000001")["state"] == "finished"


def test_a_database_that_cannot_be_used_is_named_without_its_password(tmp_path: Path) -> None:
    """The sentence names the URL, and does not put a secret into a log."""
    with pytest.raises(SettingsError) as refused:
        Database("postgresql+psycopg://me:secret@127.0.0.1:1/none?connect_timeout=2")
    assert "secret" not in str(refused.value)
    with pytest.raises(SettingsError, match="use sqlite"):
        Database("mysql://localhost/x")


def test_the_password_is_in_a_file(tmp_path: Path) -> None:
    """It is not in the URL; a wrong one is refused, and what it says is no part of the sentence."""
    if missing():
        pytest.skip(missing())
    file = tmp_path / "password"
    with postgres(password="right horse") as url:
        for wrong in ("wrong horse", ""):
            file.write_text(wrong)
            with pytest.raises(SettingsError, match=r"database\.url") as refused:
                Database(url, file)
            assert "horse" not in str(refused.value)
        file.write_text("right horse\n")
        Database(url, file).close()
        with pytest.raises(SettingsError, match=r"database\.password .*absent.*No such file"):
            Database(url, tmp_path / "absent")


def _send_until_kept(service: Service, events: list[object]) -> None:
    """As the supervisor does it: each batch again until it is acknowledged."""
    for batch in batches(events, size=4):  # type: ignore[arg-type]
        while True:
            try:
                with service.client(Role.AGGREGATOR) as client:
                    if client.post(INGEST_EVENTS, json=batch).status_code == 200:
                        break
            except httpx.TransportError:
                time.sleep(0.02)
