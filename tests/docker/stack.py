"""The compose topology, built, started, looked into and torn down by tests."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).parents[2]
PROJECT = "fedward-test"
SERVICES = (
    "aggregator",
    "alertmanager",
    "control-plane",
    "edge",
    "hospital-a-link",
    "hospital-a-trainer",
    "hospital-b-link",
    "hospital-b-trainer",
    "prometheus",
    "renewals",
)
ENVIRONMENT = {
    **os.environ,
    "FEDWARD_VERSION": "0.1.0-test",
    "FEDWARD_UI_PORT": "19443",
    "FEDWARD_EDGE_PORT": "18443",
}
PROMETHEUS = "https://prometheus:9090/api/v1/query?query="

# Runs in a container: the control plane's API, with the coordinator's token.
API = """
import json, sys
from fedward.control import ControlPlane
from fedward_compose.study import address
plane = ControlPlane(address())
what = sys.argv[1]
if what == "studies":
    print(json.dumps([s.model_dump(mode="json") for s in plane.studies()]))
if what == "study":
    print(plane.study(sys.argv[2]).model_dump_json())
if what == "nodes":
    print(json.dumps([n.model_dump(mode="json") for n in plane.nodes()]))
"""


# Runs in a container: what a page of the monitoring answers to the operator's certificate.
ASK = """
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile="/keys/ca.crt")
context.load_cert_chain("/keys/operator.crt", "/keys/operator.key")
print(urllib.request.urlopen(sys.argv[1], context=context, timeout=10).read().decode())
"""


def docker(
    *words: str,
    check: bool = True,
    timeout: float = 900,
    text: str = "",
    folder: Path = ROOT,
    environment: dict[str, str] | None = None,
) -> str:
    """Run docker; its output."""
    done = subprocess.run(
        ["docker", *words],
        cwd=folder,
        env=ENVIRONMENT | (environment or {}),
        input=text or None,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"docker {' '.join(words)}: {done.stdout}\n{done.stderr}")
    return done.stdout + ("" if check else done.stderr)


def compose(*words: str, check: bool = True, timeout: float = 900) -> str:
    """Run docker compose on the test's own project."""
    return docker("compose", "-p", PROJECT, *words, check=check, timeout=timeout)


@dataclass
class Stack:
    """A running topology: a project of compose, started from a checkout."""

    project: str = PROJECT
    folder: Path = ROOT
    environment: dict[str, str] = field(default_factory=dict)
    services: tuple[str, ...] = SERVICES
    well_after: dict[str, float] = field(default_factory=dict)

    def compose(self, *words: str, check: bool = True, timeout: float = 900) -> str:
        """Run docker compose on this project."""
        return docker(
            "compose", "-p", self.project, *words,
            check=check, timeout=timeout, folder=self.folder, environment=self.environment,
        )  # fmt: skip

    def up(self) -> float:
        """The one command, and waiting until all are well; how long that took."""
        begin = time.monotonic()
        words, more = ("up", "--detach"), {"timeout": 900}
        thread = threading.Thread(target=self.compose, args=words, kwargs=more)
        thread.start()  # returns once all are started, which waits for some to be well
        self.wait_healthy(600)
        thread.join()
        return time.monotonic() - begin

    def down(self) -> None:
        """Nothing of it stays."""
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", check=False)

    def prometheus(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus' own API answers."""
        volume = f"{self.project}_monitoring-config:/keys:ro"
        image = self.container("renewals")["Image"]
        done = docker(
            "run", "--rm", "--network", f"{self.project}_monitoring", "-v", volume,
            "--entrypoint", "python", image, "-c", ASK, PROMETHEUS + quote(expression),
        )  # fmt: skip
        found: list[dict[str, Any]] = json.loads(done)["data"]["result"]
        return found

    def listeners(self, service: str) -> tuple[set[int], set[int]]:
        """Ports that a container listens on: on its networks, and on its own loopback alone.

        From the kernel's table of the container, for an image may hold nothing to look with.
        """
        table = Path(f"/proc/{self.container(service)['State']['Pid']}/net")
        networks, loopback = set(), set()
        for name in ("tcp", "tcp6"):
            for line in (table / name).read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                address, port = local.split(":")
                if state == "0A":
                    inside = address.endswith(("7F", "01000000"))
                    (loopback if inside else networks).add(int(port, 16))
        return networks, loopback

    def container(self, service: str) -> dict[str, Any]:
        """`docker inspect` of a service's container."""
        name = self.compose("ps", "-a", "-q", service).split()[0]
        found: dict[str, Any] = json.loads(docker("inspect", name))[0]
        return found

    def health(self, service: str) -> str:
        """healthy, unhealthy, starting; running or exited where there is no check."""
        state = self.container(service)["State"]
        return str(state.get("Health", {}).get("Status", state["Status"]))

    def python(self, service: str, code: str, *words: str, check: bool = True) -> str:
        """Run Python inside a service's container."""
        return self.compose("exec", "-T", service, "python", "-c", code, *words, check=check)

    def api(self, *words: str) -> Any:
        """Ask the control plane, from a container of the cli image."""
        run = ("run", "--rm", "-T", "--no-deps", "--entrypoint", "python", "cli", "-c", API)
        return json.loads(self.compose(*run, *words).strip().splitlines()[-1])

    def study(self, study_id: str) -> dict[str, Any]:
        """A study in full."""
        found: dict[str, Any] = self.api("study", study_id)
        return found

    def newest(self) -> dict[str, Any]:
        """The newest study."""
        return dict(self.api("studies")[0])

    def submit(self, name: str, rounds: int, **more: Any) -> str:
        """Submit a study of the demo's kind; its id."""
        rewrite = (
            "import tomllib, tomli_w, sys, json; from fedward.control import ControlPlane;"
            "from fedward_compose.study import address;"
            "from protocol.study import StudySettings;"
            "t = tomllib.load(open('/cli/demo-study.toml', 'rb'));"
            "t['name'] = sys.argv[1]; t['rounds'].update(json.loads(sys.argv[2]));"
            "print(ControlPlane(address()).submit(StudySettings.model_validate(t)))"
        )
        run = ("run", "--rm", "-T", "--no-deps", "--entrypoint", "python", "cli", "-c", rewrite)
        words = (name, json.dumps({"count": rounds, **more}))
        return self.compose(*run, *words).strip().splitlines()[-1]

    def wait_round(self, study_id: str, number: int, seconds: float) -> None:
        """Wait until so many rounds have ended."""
        self.wait(lambda: self.study(study_id)["rounds_done"] >= number, seconds, study_id)

    def wait_finished(self, study_id: str, seconds: float) -> dict[str, Any]:
        """Wait for the end; the study."""
        ended = {"finished", "failed", "stopped"}
        self.wait(lambda: self.study(study_id)["state"] in ended, seconds, study_id)
        study = self.study(study_id)
        assert study["state"] == "finished", study
        return study

    def wait(self, check: Callable[[], bool], seconds: float, what: str) -> float:
        """Wait for `check()`; how long it took. A service that is away counts as not yet."""
        begin = time.monotonic()
        while True:
            try:
                if check():
                    return time.monotonic() - begin
            except (AssertionError, ValueError, IndexError, KeyError):
                pass
            if time.monotonic() - begin > seconds:
                logs = self.compose("logs", "--tail", "8", check=False)
                raise AssertionError(f"{what}: not within {seconds:.0f} s\n{logs}")
            time.sleep(2)

    def wait_healthy(self, seconds: float) -> float:
        """Wait until every service is well."""
        begin = time.monotonic()
        self.well_after = {}

        def check() -> bool:
            for name in self.services:
                if name not in self.well_after and self.health(name) in {"healthy", "running"}:
                    self.well_after[name] = time.monotonic() - begin
            return len(self.well_after) == len(self.services) and all(
                self.health(name) in {"healthy", "running"} for name in self.services
            )

        return self.wait(check, seconds, "healthy")
