"""A running federation whose every process belongs to the test: to stop, to freeze, to kill.

The parts are those of `fedward up`: control plane, aggregator, and a trainer and a link for each
hospital, with the embedded model. What differs is what faults need: two small disks, a door between
one hospital's link and trainer, and a hospital that is enrolled and only reported for.
"""

import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import tomli_w

from certs.local import FederationPaths, federation_paths
from fedward.control import Address, ControlPlane, ControlPlaneError
from fedward.demo import MODEL
from fedward.embedded.corpus import write_hospital_data
from fedward.federation import FederationSettings, LocalSite, prepare
from fedward.launcher import components
from protocol.children import Child, python_module, stop_all
from protocol.control import SITE_PROGRESS, Role
from protocol.envelope import Envelope, load_signing_key, seal
from protocol.errors import ProtocolError
from protocol.framing import Kind, receive, send
from protocol.messages import Reply, Task
from protocol.site import DataSettings
from protocol.study import StudySettings

from .factories import framed, progress

SITES = ("alder", "birch", "cedar")
BY_HAND = "dogwood"  # enrolled, with no processes: the test signs its reports
SMALL = 96 << 20


class Parts:
    """A local federation's processes; `start` brings them up, `stop` leaves nothing behind."""

    def __init__(self, folder: Path, sites: tuple[str, ...]) -> None:
        self.folder = folder
        self.federation = prepare(folder, _settings(folder, sites))
        self.layout = self.federation.layout
        self.paths: FederationPaths = federation_paths(self.layout.certs, sites)
        self.working = tuple(site for site in sites if site != BY_HAND)
        self.children = {
            child.name: child
            for child in components(self.federation)
            if not child.name.startswith(BY_HAND)
        }
        self.frozen: list[psutil.Process] = []

    @property
    def plane(self) -> ControlPlane:
        """The control plane, as a coordinator."""
        return ControlPlane(Address.of(self.federation))

    def token(self, role: Role) -> Path:
        """The file with a role's token."""
        return self.layout.tokens / f"{role}.token"

    def client(self, port: str = "control_plane", role: Role | None = None) -> httpx.Client:
        """A client of one of the federation's ports."""
        headers = (
            {"authorization": f"Bearer {self.token(role).read_text().strip()}"} if role else {}
        )
        return httpx.Client(
            base_url=f"https://localhost:{self.federation.ports[port]}",
            verify=ssl.create_default_context(cafile=str(self.layout.trust())),
            headers=headers,
            timeout=30,
        )

    def start(self) -> None:
        """Start everything and wait until every hospital is up."""
        for child in self.children.values():
            child.start()
        self.plane.wait_until_ready(180)
        self.wait(
            "every hospital is up",
            lambda: {node.site for node in self.plane.nodes() if node.up} >= set(self.working),
        )

    def stop(self) -> None:
        """End everything, the frozen too."""
        family = [
            process
            for child in self.children.values()
            if child.pid is not None and psutil.pid_exists(child.pid)
            for process in [psutil.Process(child.pid), *descendants(child)]
        ]
        for process in self.frozen:
            if process.is_running():
                process.resume()
        for child in self.children.values():
            child.ask_to_stop()
        stop_all(list(reversed(self.children.values())), 15)
        for process in psutil.wait_procs(family, timeout=5)[1]:
            process.kill()

    def study(self, name: str, **more: Any) -> str:
        """Submit a study of a few small steps a round; its id."""
        tree: dict[str, Any] = {
            "name": name,
            "sites": list(self.working),
            "model": {"base": str(MODEL), "quantization": "nf4"},
            "adapter": {"rank": 4, "alpha": 8},
            "training": {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "max_length": 96},
            "evaluation": {"max_examples": 16},
            "rounds": {"count": 4, "minimum_sites": len(self.working), "deadline_seconds": 120},
        }
        for key, value in more.items():
            tree[key] = {**tree[key], **value} if isinstance(tree.get(key), dict) else value
        return self.plane.submit(StudySettings.model_validate(tree))

    def wait(self, what: str, ready: Callable[[], Any], seconds: float = 180) -> Any:
        """Poll until `ready()` is true; a control plane that is away is not."""
        until = time.monotonic() + seconds
        while True:
            try:
                if found := ready():
                    return found
            except ControlPlaneError:
                pass
            assert time.monotonic() < until, f"not within {seconds:.0f} s: {what}\n{self.tails()}"
            time.sleep(0.2)

    def kill(self, name: str) -> None:
        """kill -9 of one part."""
        child = self.children[name]
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        while not child.tend():
            time.sleep(0.02)

    def restart(self, name: str) -> None:
        """kill -9 of one part, and its start again, as the launcher would do it."""
        self.kill(name)
        self.children[name].start()

    def family(self, name: str, *words: str) -> list[psutil.Process]:
        """Processes below one part whose command line has all the words."""
        found = []
        for process in descendants(self.children[name]):
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if all(word in line for word in words):
                found.append(process)
        return found

    def tails(self, lines: int = 15) -> str:
        """The end of every log, for a failing test's report."""
        logs = [*self.layout.logs.glob("*.log"), *self.layout.aggregator.rglob("*.log")]
        return "\n".join(
            f"--- {file.name}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-lines:])
            for file in sorted(logs)
        )


class Live(Parts):
    """Three hospitals that work, one that is only reported for, and what faults need."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, (*SITES, BY_HAND))
        self.plane_state = self.layout.control_plane / "state"
        self.disks = [
            _small_disk(self.plane_state),
            _small_disk(self.layout.site("cedar") / "state"),
        ]
        _change(
            self.layout.control_plane / "control-plane.toml",
            revocation_list=str(self.paths.aggregator.crl),
        )
        self.door = self._door("cedar")
        self.children["cedar-link"].command = lambda: python_module(
            "hospital_node.link", "--site", str(self.layout.site("cedar") / "link.toml")
        )

    def stop(self) -> None:
        """End everything; give the disks back."""
        super().stop()
        self.door.close()
        for mounted in filter(None, self.disks):
            subprocess.run(["umount", "--lazy", str(mounted)], check=False)

    @property
    def small_disks(self) -> bool:
        """Whether this machine let us make them (it takes the right to mount)."""
        return all(self.disks)

    def freeze(self, *processes: psutil.Process) -> None:
        """SIGSTOP: they are there and do nothing more."""
        for process in processes:
            process.suspend()
            self.frozen.append(process)

    def report(self, **more: Any) -> None:
        """A report of the hospital that has no processes, signed, through the aggregator's port."""
        key = load_signing_key(self.paths.sites[BY_HAND].signing_key)
        idle = {"study_id": None, "task": None, "step": 0, "steps": 0, "tokens_per_second": 0.0}
        body = framed(progress(BY_HAND, **(idle | {"loss": None} | more)), key)
        with self.client("fleet") as client:
            answer = client.post(SITE_PROGRESS, content=body)
        assert answer.status_code == 204, answer.text

    def _door(self, site: str) -> "Door":
        """The site's link gets a settings file of its own, in which the trainer is the door."""
        folder = self.layout.site(site)
        shutil.copy(folder / "site.toml", folder / "link.toml")
        tree = tomllib.loads((folder / "link.toml").read_text())
        tree["trainer"]["socket"] = "door.sock"
        (folder / "link.toml").write_text(tomli_w.dumps(tree))
        key = load_signing_key(self.paths.sites[site].signing_key)
        return Door(folder / "state" / "door.sock", folder / "state" / "trainer.sock", key)


class Door:
    """Stands between a link and its trainer: a hospital that was taken over, key and all.

    It passes everything on until `spoils` is set; then the last value of each update is NaN, and
    the reply is signed again.
    """

    def __init__(self, path: Path, trainer: Path, key: Any) -> None:
        self.spoils = False
        self._trainer, self._key = trainer, key
        path.parent.mkdir(parents=True, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more."""
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(stream,), daemon=True).start()

    def _pass(self, stream: socket.socket) -> None:
        try:
            with stream, socket.socket(socket.AF_UNIX) as inner:
                inner.connect(str(self._trainer))
                while (frame := receive(stream)) is not None:
                    send(inner, *frame)
                    if (answer := receive(inner)) is None:
                        return
                    send(stream, answer[0], self._spoilt(*answer))
        except (OSError, ProtocolError):
            pass  # the link asks again

    def _spoilt(self, kind: Kind, envelope: Envelope) -> Envelope:
        if not self.spoils or kind is not Kind.REPLY:
            return envelope
        reply = Reply.model_validate_json(envelope.header)
        if reply.task is not Task.TRAIN or reply.payload is None:
            return envelope
        data = envelope.payload[:-4] + np.float32("nan").tobytes()
        digest = hashlib.sha256(data).hexdigest()
        payload = reply.payload.model_copy(update={"digest": digest})
        return seal(reply.model_copy(update={"payload": payload}), data, self._key, context="reply")


def descendants(child: Child) -> list[psutil.Process]:
    """All processes below one; none where it is gone."""
    try:
        return psutil.Process(child.pid).children(recursive=True) if child.pid else []
    except psutil.Error:
        return []


def _settings(folder: Path, sites: tuple[str, ...]) -> FederationSettings:
    data = write_hospital_data(folder / "data", SITES, rows_per_hospital=120, held_out_rows=24)
    files = [*data.train.values(), data.train[SITES[0]]]
    settings = {
        name: LocalSite(
            data=DataSettings(train=(train.resolve(),), heldout=(data.held_out.resolve(),)),
            device="cpu",
            threads=1,
        )
        for name, train in zip((*SITES, BY_HAND), files, strict=True)
        if name in sites
    }
    return FederationSettings(sites=settings, report_seconds=1.0)


def _small_disk(folder: Path) -> Path | None:
    """A disk of 96 MB at `folder`, where we may mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL},mode=0700", "fedward-test", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False) if os.geteuid() == 0 else None
    return folder if done is not None and done.returncode == 0 else None


def fill(folder: Path, share: float) -> None:
    """Use so much of a disk that `share` of it is free."""
    usage = shutil.disk_usage(folder)
    with (folder / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, int(usage.free - share * usage.total))


def _change(file: Path, **values: Any) -> None:
    tree = tomllib.loads(file.read_text())
    file.write_text(tomli_w.dumps(values | tree))
