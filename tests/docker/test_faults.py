"""What a federation in containers survives. Each test starts a study of its own and sees it end."""

import itertools
import os
import signal
import time

import pytest
from stack import PROJECT, SERVICES, Stack, compose, docker

pytestmark = pytest.mark.slow

NAMES = itertools.count(1)
STUDY_SECONDS = 900


def _start(stack: Stack, what: str, rounds: int = 6, **more: object) -> str:
    study = stack.submit(f"{what}-{next(NAMES)}", rounds, **more)
    stack.wait_round(study, 1, 300)
    return study


def test_a_hospital_is_cut_off_for_a_minute_in_the_middle_of_a_study(stack: Stack) -> None:
    study = _start(stack, "cut")
    link = stack.container("hospital-b-link")["Id"]
    network = f"{PROJECT}_hospital-b"
    docker("network", "disconnect", network, link)
    time.sleep(60)
    docker("network", "connect", "--alias", "hospital-b-link", network, link)
    stack.wait_finished(study, STUDY_SECONDS)
    stack.wait(lambda: stack.health("hospital-b-link") == "healthy", 120, "link is back")


@pytest.mark.parametrize(
    "service", [name for name in SERVICES if name not in {"alertmanager", "renewals"}]
)
def test_a_service_is_killed_in_the_middle_of_a_study(stack: Stack, service: str) -> None:
    """An engine does not restart what a person killed with `docker kill`, so init is killed."""
    study = _start(stack, "kill", rounds=4)
    before = stack.container(service)
    pid = before["State"]["Pid"]
    assert pid > 1  # 0 would be our own process group
    os.kill(pid, signal.SIGKILL)
    stack.wait(
        lambda: stack.container(service)["RestartCount"] > before["RestartCount"], 60, service
    )
    stack.wait_finished(study, STUDY_SECONDS)
    stack.wait_healthy(180)


def test_the_whole_stack_is_restarted_in_the_middle_of_a_study(stack: Stack) -> None:
    study = _start(stack, "restart")
    compose("down", timeout=300)
    compose("up", "--detach", timeout=600)
    finished = stack.wait_finished(study, STUDY_SECONDS)
    assert finished["rounds_done"] == finished["rounds_total"]
    stack.wait_healthy(180)


def test_a_hospital_whose_data_is_missing_does_not_stop_the_others(stack: Stack) -> None:
    """The study goes on with one, and the page says why the other is not in it."""
    volume = f"{PROJECT}_hospital-b-data:/data"
    image = stack.container("renewals")["Image"]
    run = ("run", "--rm", "--user", "10001", "-v", volume, "--entrypoint", "python", image, "-c")
    hide = "import os; os.rename('/data/train.jsonl', '/data/train.away')"
    back = "import os; os.rename('/data/train.away', '/data/train.jsonl')"
    docker(*run, hide)
    try:
        compose("restart", "hospital-b-trainer")
        study = stack.submit(f"data-{next(NAMES)}", 3, minimum_sites=1, join_seconds=120)
        finished = stack.wait_finished(study, STUDY_SECONDS)
        sites = {site["site"]: site for site in finished["sites"]}
        assert sites["hospital-a"]["rounds_ok"] >= 3
        assert "data_unreadable" in str(sites.get("hospital-b")) + str(stack.api("nodes"))
    finally:
        docker(*run, back)
        compose("restart", "hospital-b-trainer")
        stack.wait_healthy(180)


def test_a_full_volume_at_a_hospital_does_not_stop_the_others(stack: Stack) -> None:
    """The state of hospital B is on a disk of 1 MB for the length of a study."""
    volume = f"{PROJECT}_small"
    docker("volume", "create", "--opt", "type=tmpfs", "--opt", "device=tmpfs",
           "--opt", "o=size=1m,uid=10001,mode=0700", volume)  # fmt: skip
    override = (
        "services: {hospital-b-trainer: {volumes: [small:/state]}}\n"
        f"volumes: {{small: {{external: true, name: {volume}}}}}\n"
    )
    full = ("compose", "-p", PROJECT, "-f", "compose.yaml", "-f", "-")
    docker(*full, "up", "-d", "--no-deps", "hospital-b-trainer", text=override)
    try:
        fill = "open('/state/fill','wb').write(bytes(2 << 20))"
        stack.python("hospital-b-trainer", fill, check=False)
        study = stack.submit(f"full-{next(NAMES)}", 3, minimum_sites=1, join_seconds=120)
        finished = stack.wait_finished(study, STUDY_SECONDS)
        sites = {site["site"]: site for site in finished["sites"]}
        assert sites["hospital-a"]["rounds_ok"] >= 3
    finally:
        compose("up", "-d", "--no-deps", "hospital-b-trainer")
        docker("volume", "rm", volume, check=False)
        stack.wait_healthy(180)
