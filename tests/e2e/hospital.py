"""A hospital that joins a running federation by itself: its own keys, its own processes."""

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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from cryptography import x509

from fedward.federation import Layout

from .conftest import Running, fedward

EDGE = Path(__file__).parents[2] / "docker" / "edge"


@dataclass
class Newcomer:
    """One hospital outside the launcher, with its folder of keys and its two processes."""

    running: Running
    name: str
    home: Path
    aggregator: str  # host:port, as this hospital reaches it
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def keys(self) -> Path:
        return self.home / "keys"

    @property
    def site_toml(self) -> Path:
        return self.home / "site.toml"

    @property
    def log(self) -> str:
        """What its link has said."""
        return (self.home / "link.log").read_text(errors="replace")

    def enrol(self, *words: str) -> dict[str, Any]:
        """`node enrol`; the request and the fingerprint."""
        return self._json("node", "enrol", self.name, "--keys", str(self.keys), *words)

    def approve(self, made: dict[str, Any], *words: str) -> dict[str, Any]:
        """What the coordinator does with the request."""
        bundle = self.home / "bundle.json"
        return self._json(
            *("certs", "approve", made["request"], "--fingerprint", made["fingerprint"]),
            *("--aggregator", self.aggregator, "--out", str(bundle), *words),
        )

    def install(self, *words: str) -> dict[str, Any]:
        """`node install` of the bundle that came back."""
        bundle = self.home / "bundle.json"
        return self._json("node", "install", str(bundle), "--keys", str(self.keys), *words)

    def settle(self, train: Path, heldout: Path) -> None:
        """Complete the site.toml that `node install` wrote, as its administrator would."""
        import tomllib

        tree = tomllib.loads(self.site_toml.read_text())
        tree["data"] = {"train": [str(train)], "heldout": [str(heldout)]}
        tree["trainer"] |= {"device": "cpu", "threads": 1}
        tree["link"]["report_seconds"] = 1.0
        self.site_toml.write_text(tomli_w.dumps(tree))

    def start(self) -> None:
        """Its trainer and its link."""
        for part in ("trainer", "link"):
            log = (self.home / f"{part}.log").open("ab")
            words = [sys.executable, "-m", f"hospital_node.{part}", "--site", str(self.site_toml)]
            self.processes.append(
                subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, cwd=self.home)
            )
            log.close()

    def stop(self) -> None:
        """End both."""
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        self.processes.clear()

    def _json(self, *words: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(
            fedward(*words, "--json", folder=self.running.folder).stdout
        )
        return answer


@dataclass
class Watch:
    """Asks again and again until `refused` says so; when that was, in unix seconds."""

    refused: Callable[[], bool]
    at: float = 0.0

    def __post_init__(self) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(0.2):
            if self.refused():
                self.at = time.time()
                return

    def wait(self, seconds: float) -> float:
        """Wait for the refusal."""
        self._thread.join(seconds)
        self._end.set()
        assert self.at, f"not refused within {seconds:.0f} s"
        return self.at


def serial_at(port: int, ca: Path, pair: Path | None = None) -> str:
    """The serial of the certificate that a listener shows now."""
    context = ssl.create_default_context(cafile=str(ca))
    if pair is not None:
        context.load_cert_chain(pair)
    with (
        socket.create_connection(("localhost", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as stream,
    ):
        shown = stream.getpeercert(binary_form=True)
    assert shown is not None
    return f"{x509.load_der_x509_certificate(shown).serial_number:x}"


@contextmanager
def edge_of(running: Running, folder: Path) -> Iterator[int]:
    """HAProxy in front of a local federation, on the coordinator's own files; its port."""
    certs = Layout(running.folder).certs
    port = free_port()
    environment = {
        **os.environ,
        "EDGE_LISTEN": f"127.0.0.1:{port}",
        "EDGE_METRICS_LISTEN": f"127.0.0.1:{free_port()}",
        "EDGE_TABLES": str(EDGE),
        "EDGE_CONFIG": str(EDGE / "haproxy.cfg"),
        "EDGE_CERTS": str(certs / "aggregator"),
        "EDGE_REGISTRY": str(certs / "registry" / "sites.json"),
        "EDGE_RUN": str(folder),
        "EDGE_AGGREGATOR": f"127.0.0.1:{running.federation.ports['fleet']}",
        "EDGE_AGGREGATOR_NAME": "localhost",
        "EDGE_CONTROL_PLANE": f"127.0.0.1:{running.federation.ports['control_plane']}",
        "EDGE_CONTROL_PLANE_NAME": "localhost",
        "PYTHONPATH": str(EDGE),
    }
    folder.mkdir()
    command = [sys.executable, "-m", "fedward_edge"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        running.wait(
            "the edge",
            lambda: subprocess.run([*command, "health"], env=environment).returncode == 0,
            seconds=60,
        )
        yield port
    finally:
        process.terminate()
        process.wait(40)


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
