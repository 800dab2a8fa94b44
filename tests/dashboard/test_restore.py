"""A control plane restored from an older backup: the aggregator sends what it lacks."""

import shutil
from pathlib import Path

import pytest

from protocol.control import EVENTS, STUDIES, Role
from protocol.events import StudyInterrupted, StudyQueued, StudyStarted
from server.folder import StudyFolder
from server.forward import OFFER_SECONDS, Forwarder
from server.plane import ControlPlane
from server.settings import ControlPlaneSettings

from .factories import settings
from .service import Service
from .test_studies import submit


class Aggregator:
    """What the aggregator has of one study, and a clock that stands still."""

    def __init__(self, service: Service, folder: Path) -> None:
        (folder / "demo-0a1b2c").mkdir()
        self.study = StudyFolder(folder / "demo-0a1b2c", "demo-0a1b2c")
        self.now = 0.0
        known = ControlPlaneSettings(
            url=service.url.replace("127.0.0.1", "localhost"),
            ca=service.folder / "plane.crt",
            token=service.folder / "tokens" / f"{Role.AGGREGATOR}.token",
        )
        self.forwarder = Forwarder(ControlPlane(known), lambda: [self.study], lambda: self.now)
        self.study.journal.append(StudyQueued, settings=settings())
        self.study.journal.append(StudyStarted, flower_run_id="1")

    def tell(self, count: int) -> None:
        """So many more events happen, and are sent."""
        for _ in range(count):
            self.study.journal.append(StudyInterrupted, last_round=0, cause="x")
        self.forwarder.step()


def backup(service: Service) -> Path:
    service.stop()
    copy = service.folder / "backup"
    shutil.copytree(service.folder / "state", copy)
    service.start()
    return copy


def restore(service: Service, copy: Path) -> None:
    service.stop()
    shutil.rmtree(service.folder / "state")
    shutil.copytree(copy, service.folder / "state")
    service.start()


@pytest.mark.parametrize("more", [3, 0], ids=["that goes on", "that has ended"])
def test_the_history_is_whole_again(fresh: Service, tmp_path: Path, more: int) -> None:
    """With its next event, or when none comes within five minutes, a study is sent again."""
    aggregator = Aggregator(fresh, tmp_path)
    aggregator.tell(2)
    copy = backup(fresh)
    aggregator.tell(700)  # more than fit into one batch
    restore(fresh, copy)
    assert fresh.get(f"{STUDIES}/demo-0a1b2c")["last_seq"] == 4
    aggregator.now += OFFER_SECONDS + 1 if not more else 0
    aggregator.tell(more)
    assert fresh.get(f"{STUDIES}/demo-0a1b2c")["last_seq"] == 704 + more
    first = fresh.get(EVENTS, limit=500)
    rest = fresh.get(EVENTS, limit=500, after=first["next"])
    found = [item["event"]["seq"] for page in (first, rest) for item in page["items"]]
    assert found == list(range(1, 705 + more))


def test_an_empty_control_plane_is_told_everything(fresh: Service, tmp_path: Path) -> None:
    """Its state folder was lost: studies come back from the aggregator's journals."""
    aggregator = Aggregator(fresh, tmp_path)
    aggregator.tell(2)
    fresh.stop()
    shutil.rmtree(fresh.folder / "state")
    fresh.start()
    aggregator.tell(1)
    assert fresh.get(f"{STUDIES}/demo-0a1b2c")["last_seq"] == 5


def test_a_number_that_the_supervisor_has_done_is_not_given_again(fresh: Service) -> None:
    """Commands after a restore have numbers above those before it, so none is passed over."""
    copy = backup(fresh)
    submit(fresh, name="lost")
    with fresh.client(Role.AGGREGATOR) as client:
        (before,) = client.get("/api/v1/ingest/commands").json()
    restore(fresh, copy)
    submit(fresh, name="next")
    with fresh.client(Role.AGGREGATOR) as client:
        (after,) = client.get("/api/v1/ingest/commands", params={"after": before["id"]}).json()
    assert after["settings"]["name"] == "next"
