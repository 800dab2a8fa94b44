"""One topology for all tests here: built, started, its first study run, torn down.

Takes minutes and an engine: `make compose-test`, or `pytest -m docker tests/docker`.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stack import Stack, compose


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
        if here in item.path.parents
        and {"stack", "images"} & set(getattr(item, "fixturenames", ()))
    ]
    reason = _why_not() if mine else ""
    for item in mine:
        item.add_marker(pytest.mark.docker)
        item.add_marker(pytest.mark.timeout(1800))
        if reason:
            why = f"{reason}: the containers were not tested (`make compose-test`)"
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def images() -> float:
    """Every image, built from this checkout; seconds it took."""
    begin = time.monotonic()
    if os.environ.get("FEDWARD_TEST_STACK") != "running":
        for service in ("init", "hospital-a-trainer", "hospital-a-link"):
            compose("build", service, timeout=1800)
        compose("build", "aggregator", "control-plane", "edge", timeout=1800)
    return time.monotonic() - begin


@pytest.fixture(scope="session")
def stack(images: float) -> Iterator[Stack]:
    """The topology, healthy, with its first study finished.

    FEDWARD_TEST_STACK=running takes one that is up already, and leaves it up: to work on a test.
    """
    running = Stack()
    if os.environ.get("FEDWARD_TEST_STACK") == "running":
        yield running
        return
    running.down()
    try:
        healthy = running.up()
        for name, seconds in sorted(running.well_after.items(), key=lambda item: item[1]):
            print(f"{name} well after {seconds:.0f} s")
        print(f"images built in {images:.0f} s, all well after {healthy:.0f} s")
        running.wait(lambda: bool(running.api("studies")), 120, "the first study")
        running.wait_finished(running.newest()["study_id"], 900)
        yield running
    finally:
        running.down()
