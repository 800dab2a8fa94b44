"""What a federation in containers survives. Each test starts a study of its own and sees it end."""

import itertools
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from stack import PROJECT, SERVICES, Stack, compose, docker

pytestmark = pytest.mark.slow

NAMES = itertools.count(1)
STUDY_SECONDS = 900


def _start(stack: Stack, what: str, rounds: int = 6, **more: object) -> str:
    study = stack.submit(f"{what}-{next(NAMES)}", rounds, **more)
    stack.wait_round(study, 1, 300)
    return study


def test_a_hospital_is_cut_off_for_a_minute_in_the_middle_of_an_upload(stack: Stack) -> None:
    """Its line is made slow first, so that an upload of 0.9 MB takes a while and can be met.

    The cut leaves both ends with a connection that nobody closed. Not one round goes without it.
    """
    if not shutil.which("tc"):
        pytest.skip("no tc command (iproute2) on this machine to slow a line down with")
    study = _start(stack, "cut")
    link = stack.container("hospital-b-link")
    inside = ("nsenter", "--net", "--target", str(link["State"]["Pid"]))
    limit = ("tbf", "rate", "400kbit", "burst", "16kb", "latency", "400ms")
    subprocess.run([*inside, "tc", "qdisc", "add", "dev", "eth0", "root", *limit], check=True)
    sent = _in_an_upload(link["State"]["Pid"])
    network = f"{PROJECT}_hospital-b"
    docker("network", "disconnect", network, link["Id"])
    print(f"\ncut after {sent / 1e3:.0f} kB of an upload")
    time.sleep(60)
    docker("network", "connect", "--alias", "hospital-b-link", network, link["Id"])
    finished = stack.wait_finished(study, STUDY_SECONDS)
    assert {site["site"]: site["rounds_ok"] for site in finished["sites"]} == {
        "hospital-a": finished["rounds_total"],
        "hospital-b": finished["rounds_total"],
    }
    stack.wait(lambda: stack.health("hospital-b-link") == "healthy", 120, "link is back")


def _in_an_upload(pid: int) -> int:
    """Wait until the line is full for three seconds; bytes sent in them. Nothing else fills it."""

    def sent() -> int:
        for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
            if line.split(":")[0].strip() == "eth0":
                return int(line.split(":")[1].split()[8])
        raise AssertionError("no eth0 in the link")

    seen = [sent()] * 4
    for _ in range(300):
        time.sleep(1)
        seen = [*seen[1:], sent()]
        if all(after - before > 40_000 for before, after in itertools.pairwise(seen)):
            return seen[-1] - seen[0]
    raise AssertionError("no upload in five minutes")


@pytest.mark.parametrize("service", SERVICES)
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


def test_docker_kill_of_every_service_in_turn_during_one_study(stack: Stack) -> None:
    """What a person killed stays down until that person starts it again: here, at once."""
    study = _start(stack, "turn", rounds=12)
    for service in SERVICES:
        compose("kill", service)
        assert stack.container(service)["State"]["Status"] == "exited"
        compose("start", service)
        print(f"killed and started {service}")
    stack.wait_finished(study, STUDY_SECONDS)
    stack.wait_healthy(180)


def test_the_whole_stack_is_restarted_in_the_middle_of_a_study(stack: Stack) -> None:
    study = _start(stack, "restart")
    compose("down", timeout=300)
    compose("up", "--detach", timeout=600)
    finished = stack.wait_finished(study, STUDY_SECONDS)
    assert finished["rounds_done"] == finished["rounds_total"]
    stack.wait_healthy(180)


@pytest.mark.parametrize(
    ("hide", "back"),
    [
        ("os.rename('/data/train.jsonl', '/data/train.away')",
         "os.rename('/data/train.away', '/data/train.jsonl')"),
        ("os.chmod('/data', 0)", "os.chmod('/data', 0o750)"),
        ("os.chmod('/data/train.jsonl', 0)", "os.chmod('/data/train.jsonl', 0o644)"),
    ],
    ids=["missing", "folder-unreadable", "file-unreadable"],
)  # fmt: skip
def test_a_hospital_without_its_data_does_not_stop_the_others(
    stack: Stack, hide: str, back: str
) -> None:
    volume = f"{PROJECT}_hospital-b-data:/data"
    image = stack.container("renewals")["Image"]
    run = ("run", "--rm", "-v", volume, "--entrypoint", "python", image, "-c")
    docker(*run, f"import os; {hide}")
    try:
        compose("restart", "hospital-b-trainer")
        _goes_on_without_b(stack)
    finally:
        docker(*run, f"import os; {back}")
        compose("restart", "hospital-b-trainer")
        stack.wait_healthy(180)


def test_a_hospital_whose_data_is_not_mounted_does_not_stop_the_others(
    stack: Stack, tmp_path: Path
) -> None:
    """A path that is not there: the engine mounts a new and empty folder in its place."""
    up = ("compose", "-p", PROJECT, "up", "-d", "--no-deps", "hospital-b-trainer")
    docker(*up, environment={"HOSPITAL_B_DATA": str(tmp_path / "absent")})
    try:
        _goes_on_without_b(stack)
    finally:
        docker(*up)
        stack.wait_healthy(180)


def _goes_on_without_b(stack: Stack) -> None:
    """The study goes on with one; the dashboard's API and the container's health say why."""
    study = stack.submit(f"data-{next(NAMES)}", 3, minimum_sites=1, join_seconds=120)
    finished = stack.wait_finished(study, STUDY_SECONDS)
    sites = {site["site"]: site for site in finished["sites"]}
    assert sites["hospital-a"]["rounds_ok"] == 3
    assert not sites.get("hospital-b", {}).get("rounds_ok")
    nodes = {node["site"]: node["progress"]["health"] for node in stack.api("nodes")}
    assert (nodes["hospital-b"]["state"], nodes["hospital-b"]["reason"]) == (
        "broken",
        "data_unreadable",
    )
    stack.wait(lambda: stack.health("hospital-b-trainer") == "unhealthy", 300, "unhealthy")
    log = stack.container("hospital-b-trainer")["State"]["Health"]["Log"][-1]["Output"]
    assert "data_unreadable" in log


def test_a_full_volume_at_a_hospital_does_not_stop_the_others(stack: Stack) -> None:
    """The state of hospital B is on a disk of 1 MB, which is full for the length of a study.

    A trainer that cannot write its ledger answers nothing, so each round lasts to its deadline.
    """
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
        stack.wait(lambda: stack.health("hospital-b-trainer") == "healthy", 200, "small disk")
        fill = (
            "import os; file = open('/state/fill', 'wb', buffering=0)\n"
            "try:\n    while True: file.write(bytes(4096))\n"
            "except OSError as error: print(error.strerror)"
        )
        assert stack.python("hospital-b-trainer", fill).strip() == "No space left on device"
        short = {"minimum_sites": 1, "join_seconds": 60, "deadline_seconds": 60}
        study = stack.submit(f"full-{next(NAMES)}", 3, **short)
        finished = stack.wait_finished(study, STUDY_SECONDS)
        sites = {site["site"]: site for site in finished["sites"]}
        assert sites["hospital-a"]["rounds_ok"] == 3
        assert not sites.get("hospital-b", {}).get("rounds_ok")
        nodes = {node["site"]: node for node in stack.api("nodes")}
        print(f"\nof the full disk is known: {nodes['hospital-b']['progress']['health']}")
        # With room again it takes part again, without a restart.
        stack.python("hospital-b-trainer", "import os; os.remove('/state/fill')")
        study = stack.submit(f"full-{next(NAMES)}", 2, minimum_sites=2)
        finished = stack.wait_finished(study, STUDY_SECONDS)
        assert {site["rounds_ok"] for site in finished["sites"]} == {2}
    finally:
        compose("up", "-d", "--no-deps", "hospital-b-trainer")
        docker("volume", "rm", volume, check=False)
        stack.wait_healthy(180)
