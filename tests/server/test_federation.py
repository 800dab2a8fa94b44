"""The aggregator as it is shipped, with Flower's real SuperLink and two real links.

Only the trainers are stand-ins (numpy behind the same Unix socket) and the control plane is a few
lines of HTTPS. A study takes seconds; the faults come in the middle of its rounds.
"""

import contextlib
import http.server
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from certs.local import FederationPaths
from protocol.control import COMMANDS, INGEST_EVENTS, INGEST_NODES, Command
from protocol.envelope import Envelope
from protocol.events import (
    EVENTS,
    Event,
    RoundFinished,
    RoundStarted,
    StudyEnded,
    StudyInterrupted,
    StudyStarted,
)
from protocol.framing import Kind, receive, send
from protocol.manifest import AdapterManifest, TensorSpec
from protocol.messages import Request, Task
from protocol.states import StudyState
from protocol.study import StudySettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MANIFEST = AdapterManifest(tensors=(TensorSpec(name="layer.lora_A.weight", shape=(512, 512)),))


class FakePlane(http.server.ThreadingHTTPServer):
    """A control plane that keeps what it is sent and hands out commands."""

    def __init__(self, certificate: Path, key: Path) -> None:
        super().__init__(("127.0.0.1", 0), _PlaneHandler)
        self.daemon_threads = True
        self.events: list[Event] = []
        self.nodes: dict[str, dict[str, Any]] = {}
        self.commands: list[Command] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """Say nothing: clients that are killed break connections."""


class _PlaneHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakePlane

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == INGEST_EVENTS:
            have = {(event.study_id, event.seq) for event in self.server.events}
            new = [e for e in EVENTS.validate_json(body) if (e.study_id, e.seq) not in have]
            self.server.events.extend(new)
        elif self.path == INGEST_NODES:
            self.server.nodes.update({node["site"]: node for node in json.loads(body)})
        self._answer(b'{"stored": 0}')

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?after=")
        assert path == COMMANDS
        rest = [c.model_dump(mode="json") for c in self.server.commands if c.id > int(query)]
        self._answer(json.dumps(rest).encode())

    def _answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class FakeTrainer:
    """Answers on the trainer's socket as a hospital in memory would; remembers its answers."""

    def __init__(self, path: Path, hospital: Any) -> None:
        self.hospital, self.seconds = hospital, 0.0
        self._answers: dict[str, Envelope] = {}
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            stream, _ = self._listener.accept()
            threading.Thread(target=self._answer, args=(stream,), daemon=True).start()

    def _answer(self, stream: socket.socket) -> None:
        with stream:
            frame = receive(stream)
            if frame is None or frame[0] is not Kind.REQUEST:
                return
            request = Request.model_validate_json(frame[1].header)
            with self._lock:
                if request.request_id not in self._answers:
                    if request.task is Task.TRAIN:
                        time.sleep(self.seconds)
                    self._answers[request.request_id] = self.hospital.truth(request, frame[1])
            with contextlib.suppress(OSError):  # the link was killed; it asks again
                send(stream, Kind.REPLY, self._answers[request.request_id])


@dataclass
class Federation:
    """Everything that runs, and where it writes."""

    folder: Path
    toml: Path
    plane: FakePlane
    trainers: list[FakeTrainer]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    aggregator: subprocess.Popen[bytes] | None = None

    def start_aggregator(self) -> None:
        self.aggregator = self.start("aggregator", "server.main", "--settings", str(self.toml))

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], stdout=log, stderr=subprocess.STDOUT
            )
        self.processes.append(process)
        return process

    def family(self, marker: str) -> list[psutil.Process]:
        """Processes under the aggregator whose command line has `marker`."""
        assert self.aggregator is not None
        found = []
        for process in psutil.Process(self.aggregator.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ended, or waits to be collected
                if marker in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def submit(self, study_id: str, **rounds: Any) -> None:
        settings = StudySettings.model_validate(
            {
                "name": "trial",
                "sites": ["hospital-a", "hospital-b"],
                "model": {"base": "some/base"},
                "rounds": {"count": 4, "minimum_sites": 2, "deadline_seconds": 60} | rounds,
            }
        )
        number = len(self.plane.commands) + 1
        self.plane.commands.append(
            Command(id=number, action="start", study_id=study_id, settings=settings)
        )

    def events(self, study_id: str, kind: type[Any]) -> list[Any]:
        return [e for e in self.plane.events if e.study_id == study_id and isinstance(e, kind)]

    def wait_for(self, what: Callable[[], Any], seconds: float = 240) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.05)
        return found

    def end_of(self, study_id: str) -> StudyEnded:
        (end,) = self.wait_for(lambda: self.events(study_id, StudyEnded))
        assert isinstance(end, StudyEnded)
        return end

    def logs(self) -> str:
        files = [*self.folder.glob("*.log"), *(self.folder / "state" / "logs").glob("*.log")]
        return "\n".join(f"== {file}\n{file.read_text()[-3000:]}" for file in files)


@pytest.fixture(scope="module")
def running(
    federation: FederationPaths,
    registry: Path,
    write_aggregator: Callable[..., Path],
    free_port: Callable[[], int],
    make_hospitals: Callable[[], dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Federation]:
    """An aggregator, two links with their trainers, and a control plane."""
    folder = tmp_path_factory.mktemp("f")
    plane = FakePlane(federation.control_plane.cert, federation.control_plane.key)
    port = free_port()
    toml = write_aggregator(
        folder, fleet_port=port, control_plane=f"https://localhost:{plane.server_address[1]}"
    )
    hospitals = make_hospitals()
    everything = Federation(folder, toml, plane, [])
    try:
        everything.start_aggregator()
        for name in ("hospital-a", "hospital-b"):
            site, keys = folder / name, federation.sites[name]
            (site / "state").mkdir(parents=True)
            (site / "site.toml").write_text(
                f"""
                name = "{name}"
                [aggregator]
                address = "127.0.0.1:{port}"
                ca_certificate = "{federation.ca}"
                signing_key = "{keys.study_public}"
                [link]
                node_key = "{keys.node_key}"
                [data]
                train = ["rows.jsonl"]
                [trainer]
                signing_key = "{keys.signing_key}"
                """
            )
            hospital = hospitals[name]
            hospital.manifest = MANIFEST
            # Different for each: equal updates would be equal objects, and Flower moves those once.
            hospital.target = np.random.default_rng(hospital.node_id).random(
                MANIFEST.numel, np.float32
            )
            everything.trainers.append(FakeTrainer(site / "state" / "trainer.sock", hospital))
            everything.start(name, "hospital_node.link", "--site", str(site / "site.toml"))
        yield everything
    finally:
        for process in everything.processes:
            process.terminate()
        for process in everything.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        plane.shutdown()


def test_study_runs(running: Federation) -> None:
    """A study from command to report: verdict, bytes that agree with Flower's, little overhead."""
    running.submit("plain-1")
    end = running.end_of("plain-1")
    assert end.state is StudyState.FINISHED, running.logs()
    rounds = running.events("plain-1", RoundFinished)
    assert [event.sites_ok for event in rounds] == [2, 2, 2, 2]
    overhead = sorted(event.seconds - event.seconds_training for event in rounds)
    report = json.loads((running.folder / "state/studies/plain-1/report.json").read_text())
    print("seconds per round:", overhead, "bytes:", report["bytes"])
    assert report["bytes"]["up"] == pytest.approx(report["bytes"]["flower_in"], rel=0.01)
    assert report["bytes"]["down"] == pytest.approx(report["bytes"]["flower_out"], rel=0.01)
    node = running.wait_for(lambda: running.plane.nodes.get("hospital-a"))
    assert node["status"] == "online"
    assert node["wire_bytes_in"] > report["sites"]["hospital-a"]["bytes"]["up"]
    assert running.plane.nodes["hospital-c"]["status"] == "registered"
    seqs = [e.seq for e in running.plane.events if e.study_id == "plain-1"]
    assert seqs == list(range(1, len(seqs) + 1))


@pytest.mark.parametrize("victim", ["flwr-serverapp", "server.superlink", "server.superexec"])
def test_killed_in_the_middle_of_a_round(running: Federation, victim: str) -> None:
    """kill -9 of a process of ours in round 2 costs at most that round, and the study ends well."""
    study_id = "killed-" + victim.replace(".", "-")
    for trainer in running.trainers:
        trainer.seconds = 1.0
    running.submit(study_id)
    running.wait_for(lambda: [e for e in running.events(study_id, RoundStarted) if e.round == 2])
    victims = running.family(victim)
    assert victims
    for process in victims:
        process.kill()
    end = running.end_of(study_id)
    assert end.state is StudyState.FINISHED, running.logs()
    finished = [e.round for e in running.events(study_id, RoundFinished) if e.aggregated]
    assert finished == [1, 2, 3, 4]
    starts = [e.from_round for e in running.events(study_id, StudyStarted)]
    assert len(running.events(study_id, StudyInterrupted)) == len(starts) - 1
    if victim != "server.superlink":
        assert starts == [0, 1]


def test_aggregator_killed_leaves_nothing_and_goes_on(running: Federation) -> None:
    """kill -9 of the aggregator ends all its processes; started again, it ends the study."""
    running.submit("aggregator-killed")
    running.wait_for(
        lambda: [e for e in running.events("aggregator-killed", RoundStarted) if e.round == 2]
    )
    assert running.aggregator is not None
    children = psutil.Process(running.aggregator.pid).children(recursive=True)
    os.kill(running.aggregator.pid, signal.SIGKILL)
    running.aggregator.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    running.start_aggregator()
    assert running.end_of("aggregator-killed").state is StudyState.FINISHED, running.logs()


def test_stop(running: Federation) -> None:
    """A stop from the control plane ends a study within seconds."""
    running.submit("stopped-1", count=1000)
    running.wait_for(lambda: running.events("stopped-1", RoundFinished))
    running.plane.commands.append(
        Command(id=len(running.plane.commands) + 1, action="stop", study_id="stopped-1")
    )
    started = time.monotonic()
    assert running.end_of("stopped-1").state is StudyState.STOPPED
    assert time.monotonic() - started < 15
