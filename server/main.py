"""The aggregator: one command that keeps everything on its side running.

    python -m server.main --settings aggregator.toml

    main --+-- superlink   Flower behind a guard (server.superlink)
           +-- superexec   starts a ServerApp for each run (server.superexec)
           +-- threads     studies, nodes, events, commands

SIGTERM and SIGINT stop them in order. They end with this process, also when it is killed, and the
next start goes on with every study that had not ended.
"""

import argparse
import logging
import signal
import sys
import threading
import time
from pathlib import Path

from protocol.children import Child, python_module, stop_all
from protocol.envelope import load_signing_key
from protocol.errors import FedwardError, SettingsError
from protocol.flower import environment, superexec_arguments
from protocol.registry import load_registry
from protocol.tls import ReloadingContext

from ._flower import ControlClient
from .commands import CommandReader
from .folder import StudyFolder
from .forward import Forwarder
from .lease import HeldError, Lease
from .nodes import NodeKeeper
from .plane import ControlPlane
from .secrets import ensure_secret, read_secret
from .settings import SETTINGS_VARIABLE, AggregatorSettings, load_aggregator
from .superlink import check_ports
from .supervisor import Supervisor
from .work import Worker

log = logging.getLogger(__name__)

TEND_SECONDS = 0.2
POLL = {"studies": 0.5, "nodes": 2.0, "events": 0.25, "commands": 0.5}


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m server.main", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True, help="aggregator.toml")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        path = arguments.settings.resolve()
        settings = load_aggregator(path)
        prepare(settings)
        with Lease(settings.state / "lock"):
            check_ports(settings)
            run(settings, path, stop)
    except HeldError:
        print(f"error: {settings.state}: another aggregator works in this folder", file=sys.stderr)
        return 2
    except FedwardError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def prepare(settings: AggregatorSettings) -> None:
    """Make the state folder and its secrets; read once whatever will be needed later.

    Raises:
        SettingsError: something is missing or wrong; nothing was started.
    """
    for folder in ("studies", "logs", "flower"):
        try:
            (settings.state / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise SettingsError(
                f"state = {str(settings.state)!r}: cannot be written: {error.strerror or error}"
            ) from error
    ensure_secret(settings.superexec_secret)
    ensure_secret(settings.control_token)
    ReloadingContext(settings.tls.certificate, settings.tls.key)
    load_registry(settings.registry)
    load_signing_key(settings.signing_key)
    read_secret(settings.control_plane.token)


def run(settings: AggregatorSettings, path: Path, stop: threading.Event) -> None:
    """Keep everything running until `stop` is set."""
    children = processes(settings, path)
    workers = work(settings, stop)
    try:
        for child in children:
            child.start()
        for worker in workers:
            worker.start()
        log.info(
            "hospitals reach this aggregator at %s:%d", settings.fleet.host, settings.fleet.port
        )
        while not stop.wait(TEND_SECONDS):
            for child in children:
                child.tend()
    finally:
        stop.set()
        # The ServerApp first, while the SuperLink can still take its leave.
        stop_all(list(reversed(children)))
        deadline = time.monotonic() + 5
        for worker in workers:
            worker.join(max(0.1, deadline - time.monotonic()))


def processes(settings: AggregatorSettings, path: Path) -> list[Child]:
    """The SuperLink and its SuperExec, each with a FLWR_HOME of its own."""
    superlink = python_module("server.superlink", "--settings", str(path))
    superexec = python_module(
        "server.superexec",
        *superexec_arguments(
            runtime_api=settings.private_address,
            ca=settings.tls.ca,
            secret=settings.superexec_secret,
        ),
    )
    logs = settings.state / "logs"
    # One question a second: only the start of a study waits for it, and each costs 6 ms of CPU.
    extra = {SETTINGS_VARIABLE: str(path), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "1.0"}
    return [
        Child(
            "superlink",
            lambda: superlink,
            environment(settings.state / "flower" / "superlink"),
            logs / "superlink.log",
        ),
        Child(
            "superexec",
            lambda: superexec,
            environment(settings.state / "flower" / "superexec", extra),
            logs / "superexec.log",
        ),
    ]


def work(settings: AggregatorSettings, stop: threading.Event) -> list[Worker]:
    """The threads; each has clients of its own, because Flower's is not shared between threads."""
    token = ensure_secret(settings.control_token)

    def control() -> ControlClient:
        return ControlClient(settings.private_address, settings.tls.ca, token)

    def study(study_id: str) -> StudyFolder:
        return StudyFolder(settings.study(study_id), study_id)

    supervisor = Supervisor(settings, control())
    plane = settings.control_plane
    nodes = NodeKeeper(settings, control(), ControlPlane(plane), token)
    events = Forwarder(ControlPlane(plane), supervisor.studies)
    commands = CommandReader(ControlPlane(plane), settings.state / "commands", study)
    steps = {
        "studies": supervisor.step,
        "nodes": nodes.step,
        "events": events.step,
        "commands": commands.step,
    }
    return [Worker(name, step, POLL[name], stop) for name, step in steps.items()]


if __name__ == "__main__":
    sys.exit(main())
