"""One topology for all tests here: built, started, its first study run, torn down.

Takes minutes and an engine: `make compose-test`, or `pytest -m docker tests/docker`.
"""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stack import PROJECT, Stack, compose, docker


def _why_not() -> str:
    """Why nothing here can run; empty when it can."""
    if not shutil.which("docker"):
        return "no docker command on this machine"
    done = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if done.returncode != 0:
        return "docker compose is not installed"
    done = subprocess.run(["docker", "info"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "no container engine answers"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything that needs an engine, and skip it with the reason."""
    here = Path(__file__).parent
    mine = [
        item
        for item in items
        if here in item.path.parents and "stack" in getattr(item, "fixturenames", ())
    ]
    reason = _why_not() if mine else ""
    for item in mine:
        item.add_marker(pytest.mark.docker)
        item.add_marker(pytest.mark.timeout(1800))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """The topology, healthy, with its first study finished.

    FEDWARD_TEST_STACK=running takes one that is up already, and leaves it up: to work on a test.
    """
    if os.environ.get("FEDWARD_TEST_STACK") == "running":
        yield Stack()
        return
    compose("--profile", "*", "down", "--volumes", "--remove-orphans", check=False)
    for service in ("init", "hospital-a-trainer", "hospital-a-link", "aggregator", "control-plane"):
        compose("build", service, timeout=1800)
    compose("build", "edge")
    running = Stack()
    begin = time.monotonic()
    up = threading.Thread(target=compose, args=("up", "--detach"), kwargs={"timeout": 600})
    up.start()  # returns once all are started, which waits for some to be well
    try:
        running.wait_healthy(600)
        running.seconds_to_healthy = time.monotonic() - begin
        up.join()
        running.wait(lambda: bool(running.api("studies")), 120, "the first study")
        running.wait_finished(running.newest()["study_id"], 900)
        running.seconds_to_finished = time.monotonic() - begin
        for name, seconds in sorted(running.well_after.items(), key=lambda item: item[1]):
            print(f"{name} well after {seconds:.0f} s")
        print(
            f"\nhealthy after {running.seconds_to_healthy:.0f} s, "
            f"first study finished after {running.seconds_to_finished:.0f} s"
        )
        yield running
    finally:
        compose("--profile", "*", "down", "--volumes", "--remove-orphans", check=False)
        docker("volume", "prune", "--force", "--filter", f"label={PROJECT}", check=False)
