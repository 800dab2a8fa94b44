"""The control plane with 1,000 hospitals and 10,000 rounds: scrape, page, ingest.

    python -m bench.dashboard [--sites 1000] [--rounds 10000] [--quick]

A real control plane (uvicorn, TLS, SQLite) is filled and asked over HTTPS on loopback; each figure
is the median of the requests. The goal is a scrape in under 50 ms. How much of it is CPU time of
the control plane is printed beside it: that hardly depends on what else the machine does.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
from sqlalchemy import insert

from dashboard.database import Database
from dashboard.models import Round, SiteRound
from dashboard.recording import record
from protocol.control import EVENTS, INGEST_NODES, NODES, STUDIES, Role
from protocol.states import SiteOutcome
from tests.dashboard.chromium import browser, missing
from tests.dashboard.factories import SITES, Story, snapshot
from tests.dashboard.service import Service

from .report import write_results

LONG, WIDE = "long-000001", "wide-000001"
CPU_TIMES = 50  # the kernel counts CPU time in steps of 10 ms


def main() -> None:
    """Fill, measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.dashboard", description=__doc__)
    parser.add_argument("--sites", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="a tenth of both")
    chosen = parser.parse_args()
    tenth = 10 if chosen.quick else 1
    sites, rounds = chosen.sites // tenth, chosen.rounds // tenth
    with tempfile.TemporaryDirectory(prefix="fedward-bench-") as folder:
        service = Service(Path(folder))
        try:
            found = _measure(service, sites, rounds)
        finally:
            service.stop()
    write_results(
        "dashboard",
        f"The control plane with {sites:,} hospitals and a study of {rounds:,} rounds",
        ["what", "figure"],
        [(name, f"{value:,.1f}") for name, value in found.items()],
        {"sites": sites, "rounds": rounds} | found,
    )


def _measure(service: Service, count: int, rounds: int) -> dict[str, float]:
    sites = tuple(f"site-{number:04d}" for number in range(count))
    wide = Story(WIDE)
    service.send(wide.beginning(sites))
    begun = time.perf_counter()
    events = wide.a_round(1, sites)
    service.send(events)
    ingest = len(events) / (time.perf_counter() - begun)
    _nodes(service, sites)
    _long_study(service, rounds)
    found: dict[str, float] = {"events taken a second": ingest}
    with service.client(Role.OPERATOR) as client:
        found["scrape, ms"] = _ms(client, "/metrics")
        found["scrape, CPU ms of the control plane"] = _cpu_ms(service, client, "/metrics")
        samples = [line for line in client.get("/metrics").text.splitlines() if line[0] != "#"]
        found["samples in a scrape"] = len(samples)
        # One more event of the wide study: its part must be rendered again.
        steps = iter(range(2, 100))

        def tell() -> None:
            service.send([wide.round_started(next(steps), sites)])

        found["scrape just after an event, ms"] = _ms(client, "/metrics", times=5, before=tell)
        for name, path in (
            ("studies, ms", STUDIES),
            ("study of many rounds, ms", f"{STUDIES}/{LONG}"),
            ("its curves, ms", f"{STUDIES}/{LONG}/curves"),
            ("study of many hospitals, ms", f"{STUDIES}/{WIDE}"),
            ("at most 500 hospitals, ms", f"{NODES}?limit=500"),
            ("newest 200 events, ms", f"{EVENTS}?order=newest&limit=200"),
        ):
            found[name] = _ms(client, path)
    if not missing():
        found["overview in Chromium until drawn, ms"] = _page(service, "/")
        found["long study in Chromium until drawn, ms"] = _page(service, f"/studies/{LONG}")
    database = service.folder / "state" / "control-plane.sqlite"
    found["database, MB"] = database.stat().st_size / 1e6
    part = rounds // 10
    file = service.folder / "ten.sqlite"
    found[f"database of {part:,} rounds of 10 hospitals, MB"] = _size(file, part)
    return found


def _nodes(service: Service, sites: tuple[str, ...]) -> None:
    body = [snapshot(site).model_dump(mode="json") for site in sites]
    with service.client(Role.AGGREGATOR) as client:
        assert client.post(INGEST_NODES, json=body).status_code == 200
        nodes = client.get("/metrics", headers=_bearer(service)).text
    # Health travelled with the replies, so every hospital has a report, with a GPU.
    assert nodes.count("\nfedward_gpu_memory_used_bytes{") == len(sites)


def _long_study(service: Service, rounds: int) -> None:
    """Written past the API: 50,000 events would take longer than everything that is measured."""
    story = Story(LONG, start=time.time() - 10 * rounds)
    database = Database(f"sqlite:///{service.folder / 'state' / 'control-plane.sqlite'}")
    with database.writing() as session:
        record(session, story.beginning())
        session.execute(
            insert(Round),
            [
                {
                    "study_id": LONG,
                    "round": number,
                    "started_at": story.clock + 10 * number,
                    "deadline_at": story.clock + 10 * number + 9,
                    "finished_at": story.clock + 10 * number + 8,
                    "sites_asked": 3,
                    "aggregated": True,
                    "sites_ok": 3,
                    "seconds": 8.0,
                    "train_loss": 2.0 / number,
                    "eval_loss": 2.1 / number,
                    "eval_accuracy": 1 - 1 / (number + 1),
                }
                for number in range(1, rounds)
            ],
        )
        session.execute(
            insert(SiteRound),
            [
                {
                    "study_id": LONG,
                    "round": number,
                    "task": "train",
                    "site": site,
                    "at": story.clock + 10 * number,
                    "outcome": SiteOutcome.OK,
                }
                for number in range(1, rounds)
                for site in SITES
            ],
        )
        record(session, story.a_round(rounds))
    database.close()


def _ms(
    client: httpx.Client,
    path: str,
    *,
    times: int = 15,
    before: Callable[[], None] | None = None,
) -> float:
    client.get(path)
    taken = []
    for _ in range(times):
        if before is not None:
            before()
        begun = time.perf_counter()
        answer = client.get(path)
        taken.append(time.perf_counter() - begun)
        assert answer.status_code == 200, answer.text
    return 1000 * statistics.median(taken)


def _cpu_ms(service: Service, client: httpx.Client, path: str) -> float:
    assert service.process is not None
    process = psutil.Process(service.process.pid)
    before = process.cpu_times()
    for _ in range(CPU_TIMES):
        client.get(path)
    after = process.cpu_times()
    return 1000 * (after.user + after.system - before.user - before.system) / CPU_TIMES


def _size(file: Path, rounds: int) -> float:
    """What the database of an ordinary study weighs on the disk."""
    sites = tuple(f"hospital-{number}" for number in range(10))
    story = Story("ten-000001")
    database = Database(f"sqlite:///{file}")
    with database.writing() as session:
        record(session, story.beginning(sites))
    for first in range(1, rounds, 50):
        events = [e for number in range(first, first + 50) for e in story.a_round(number, sites)]
        with database.writing() as session:
            record(session, events)
    database.close()
    return file.stat().st_size / 1e6


def _bearer(service: Service) -> dict[str, str]:
    return {"authorization": f"Bearer {service.token(Role.OPERATOR)}"}


def _page(service: Service, path: str) -> float:
    """From the address to drawn charts, with a warm browser."""
    with browser() as window:
        window.size(1280, 900, dark=False)
        window.log_in(service.url, service.token(Role.OPERATOR))
        begun = time.perf_counter()
        window.go(service.url + path, "document.querySelectorAll('.u-wrap').length >= 1")
        return 1000 * (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
