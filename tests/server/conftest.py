"""A local federation's keys (made once), and an aggregator.toml on free ports."""

import functools
import hashlib
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity

from certs.local import FederationPaths, make_federation
from protocol.codec import decode_payload, encode_payload, vector_digest
from protocol.envelope import Envelope, load_signing_key, seal
from protocol.events import StudyQueued
from protocol.flower_records import pack, unpack
from protocol.manifest import AdapterManifest, TensorSpec
from protocol.messages import (
    Description,
    Evaluation,
    Payload,
    Reply,
    Request,
    Task,
    Timing,
    Training,
)
from protocol.registry import load_registry
from protocol.states import Reason
from protocol.study import StudySettings
from server._flower import node_key_bytes
from server.app import run_study
from server.checkpoint import Vector
from server.exchange import Exchange
from server.folder import StudyFolder
from server.settings import load_aggregator

SITES = ("hospital-a", "hospital-b", "hospital-c")

WriteAggregator = Callable[..., Path]


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> FederationPaths:
    """Certificates, node keys and signing keys of three hospitals."""
    return make_federation(tmp_path_factory.mktemp("federation"), SITES)


@pytest.fixture(scope="session")
def registry(federation: FederationPaths) -> Path:
    """The list of the three enrolled hospitals."""
    return federation.sites_file


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Gives loopback ports nobody listens on."""

    def pick() -> int:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port: int = sock.getsockname()[1]
            return port

    return pick


@pytest.fixture(scope="session")
def write_aggregator(
    federation: FederationPaths, registry: Path, free_port: Callable[[], int]
) -> WriteAggregator:
    """Write a valid aggregator.toml in a folder; keywords override one value each."""

    def write(folder: Path, **override: object) -> Path:
        token = folder / "aggregator.token"
        token.write_text("t" * 64)
        token.chmod(0o600)
        values: dict[str, object] = {
            "registry": registry,
            "fleet_port": free_port(),
            "private_port": free_port(),
            "certificate": federation.aggregator.cert,
            "key": federation.aggregator.key,
            "control_plane": f"https://127.0.0.1:{free_port()}",
        } | override
        path = folder / "aggregator.toml"
        path.write_text(
            f"""
            registry = "{values["registry"]}"
            signing_key = "{federation.study_signing_key}"
            [fleet]
            host = "127.0.0.1"
            port = {values["fleet_port"]}
            [private]
            host = "127.0.0.1"
            port = {values["private_port"]}
            [tls]
            certificate = "{values["certificate"]}"
            key = "{values["key"]}"
            ca = "{federation.ca}"
            [control_plane]
            url = "{values["control_plane"]}"
            ca = "{federation.ca}"
            token = "{token.name}"
            """
        )
        return path

    return write


# -- a federation in memory --------------------------------------------------------------------

MANIFEST = AdapterManifest(
    tensors=(
        TensorSpec(name="base_model.model.model.layers.0.q_proj.lora_A.weight", shape=(4, 6)),
        TensorSpec(name="base_model.model.model.layers.0.q_proj.lora_B.weight", shape=(6, 4)),
    )
)
BASE = "b" * 64


class Clock:
    """Time that passes only when somebody sleeps; `at` does something at a given second."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._plans: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        due = [plan for plan in self._plans if plan[0] <= self.now]
        self._plans = [plan for plan in self._plans if plan[0] > self.now]
        for _, do in due:
            do()

    def at(self, seconds: float, do: Callable[[], None]) -> None:
        """Plan something, `seconds` from now."""
        self._plans.append((self.now + seconds, do))


Behaviour = Callable[[Request, Envelope], "Envelope | Error | RecordDict | None"]


@dataclass
class Hospital:
    """A node, its link and its trainer, which answers truthfully unless told otherwise.

    `behave` gets each request, as it came, and returns what is sent back: an envelope (most
    often made with `truth`), records, a Flower error, or None for silence.
    """

    name: str
    node_id: int
    node_key: bytes
    key: Ed25519PrivateKey
    target: Vector
    rows: int = 100
    base: str = BASE
    manifest: AdapterManifest = MANIFEST
    online: bool = True
    activated: str = "t0"
    delay: float = 0.0
    behave: Behaviour | None = None
    seen: list[Request] = field(default_factory=list)

    def answer(self, message: Message) -> Envelope | Error | RecordDict | None:
        """What this hospital sends back."""
        envelope = unpack(message.content)
        request = Request.model_validate_json(envelope.header)
        self.seen.append(request)
        if self.behave is not None:
            return self.behave(request, envelope)
        return self.truth(request, envelope)

    def refusal(self, request: Request, reason: Reason) -> Envelope:
        """A signed answer that the work could not be done."""
        reply = Reply(
            request_id=request.request_id,
            study_id=request.study_id,
            site=self.name,
            task=request.task,
            round=request.round,
            reason=reason,
        )
        return seal(reply, b"", self.key, context="reply")

    def truth(self, request: Request, envelope: Envelope, **override: object) -> Envelope:
        """The truthful reply; keywords replace header fields, `delta` the update, and `tamper`
        changes the encoded bytes before they are described and signed."""
        payload: Payload | None = None
        data = b""
        adapter = np.zeros(self.manifest.numel, np.float32)
        if request.payload is not None:
            adapter = decode_payload(
                request.payload, envelope.payload, self.manifest, kind="adapter"
            )
        if request.task is Task.PREPARE and request.want_initial:
            payload, data, adapter = encode_payload("fp32", adapter, self.manifest, "adapter")
        if request.task is Task.TRAIN:
            delta = override.pop("delta", (self.target - adapter) * np.float32(0.5))
            payload, data, _ = encode_payload(
                request.settings.codec.up, np.asarray(delta, np.float32), self.manifest, "delta"
            )
            tamper = cast(Callable[[bytes], bytes] | None, override.pop("tamper", None))
            if tamper is not None:
                data = tamper(data)
                digest = hashlib.sha256(data).hexdigest()
                payload = payload.model_copy(update={"digest": digest, "size": len(data)})
        distance = float(np.abs(adapter - self.target).mean())
        right = max(0, min(50, int(50 * (1 - distance))))
        trains = request.task in (Task.TRAIN, Task.LONE)
        fields = {
            "request_id": request.request_id,
            "study_id": request.study_id,
            "site": self.name,
            "task": request.task,
            "round": request.round,
            "description": Description(
                manifest=self.manifest,
                initial_digest=vector_digest(np.zeros(self.manifest.numel, np.float32)),
                base_sha256=self.base,
                base_parameters=1,
                train_examples=self.rows,
                heldout_examples=50,
                data_fingerprint="d" * 64,
            )
            if request.task is Task.PREPARE
            else None,
            "evaluation": Evaluation(
                examples=50, loss=distance, choice_examples=50, choice_correct=right
            )
            if request.evaluate
            else None,
            "training": Training(
                examples=request.steps * request.settings.training.batch_size,
                steps=request.steps,
                tokens=1,
                loss_first=2.0,
                loss_last=1.0,
                loss_mean=1.5,
                update_norm=1.0,
                epoch=1.0,
            )
            if trains
            else None,
            "timing": Timing(train=1.0, total=1.0),
            "payload": payload,
        } | override
        return seal(Reply.model_validate(fields), data, self.key, context="reply")


class FakeGrid:
    """Flower's Grid over hospitals in this process."""

    def __init__(self, clock: Clock, hospitals: Iterable[Hospital]) -> None:
        self.clock = clock
        self.hospitals = {hospital.name: hospital for hospital in hospitals}
        self.pushed: list[Message] = []
        self._replies: dict[str, tuple[float, Message]] = {}
        self.poison: set[str] = set()  # hospitals whose replies Flower's decoder cannot read

    def get_nodes(self) -> list[NodeInfo]:
        """The nodes that are online."""
        return [
            NodeInfo(
                node_id=hospital.node_id,
                public_key=hospital.node_key,
                last_activated_at=hospital.activated,
            )
            for hospital in self.hospitals.values()
            if hospital.online
        ]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver at once; the reply is there after the hospital's delay."""
        ids = []
        for message in messages:
            message_id = f"message-{len(self.pushed)}"
            message.metadata.__dict__["_message_id"] = message_id
            self.pushed.append(message)
            ids.append(message_id)
            hospital = self._hospital(message.metadata.dst_node_id)
            answer = hospital.answer(message) if hospital.online else None
            if answer is not None:
                self.reply(message, answer, hospital.delay)
        return ids

    def reply(
        self, message: Message, answer: Envelope | Error | RecordDict, delay: float = 0.0
    ) -> None:
        """Put a reply to `message` in the store."""
        content = pack(answer) if isinstance(answer, Envelope) else answer
        reply = Message(content, reply_to=message)
        self._replies[message.metadata.message_id] = (self.clock.now + delay, reply)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """What is there by now, each once."""
        ready = [
            message_id
            for message_id in message_ids
            if message_id in self._replies and self._replies[message_id][0] <= self.clock.now
        ]
        replies = [self._replies.pop(message_id)[1] for message_id in ready]
        for reply in replies:
            if self._hospital(reply.metadata.src_node_id).name in self.poison:
                raise ValueError("hostile bytes")
        return replies

    def _hospital(self, node_id: int) -> Hospital:
        return next(h for h in self.hospitals.values() if h.node_id == node_id)


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture(scope="session")
def make_hospitals(
    federation: FederationPaths, registry: Path
) -> Callable[[], dict[str, Hospital]]:
    """Makes three truthful hospitals with the federation's keys."""
    enrolled = load_registry(registry).sites

    def make() -> dict[str, Hospital]:
        rng = np.random.default_rng(7)
        return {
            name: Hospital(
                name=name,
                node_id=number,
                node_key=node_key_bytes(enrolled[name]),
                key=load_signing_key(federation.sites[name].signing_key),
                target=rng.normal(0.5, 0.3, MANIFEST.numel).astype(np.float32),
            )
            for number, name in enumerate(SITES, start=11)
        }

    return make


@pytest.fixture
def hospitals(make_hospitals: Callable[[], dict[str, Hospital]]) -> dict[str, Hospital]:
    """Three truthful hospitals."""
    return make_hospitals()


@pytest.fixture
def grid(clock: Clock, hospitals: dict[str, Hospital]) -> FakeGrid:
    """The three hospitals behind Flower's interface."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    return FakeGrid(clock, hospitals.values())


StudyRunner = Callable[..., StudyFolder]


@pytest.fixture
def study(
    grid: FakeGrid,
    clock: Clock,
    write_aggregator: WriteAggregator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> StudyRunner:
    """Run a study of the three hospitals to its verdict; keywords override settings by section."""
    monkeypatch.setattr("server.app.time.monotonic", clock)
    monkeypatch.setattr("server.app.time.sleep", clock.sleep)
    monkeypatch.setattr(
        "server.app.Exchange", functools.partial(Exchange, clock=clock, sleep=clock.sleep)
    )
    monkeypatch.setattr("server.app.Pulse", lambda _settings: dict)
    settings = load_aggregator(write_aggregator(tmp_path))

    def run(study_id: str = "trial-1", **sections: object) -> StudyFolder:
        values: dict[str, object] = {
            "name": "trial",
            "model": {"base": "some/base"},
            "rounds": {"count": 3, "deadline_seconds": 600},
        } | sections
        folder = StudyFolder(settings.study(study_id), study_id)
        asked = StudySettings.model_validate(values)
        if folder.create(asked):
            folder.journal.append(StudyQueued, settings=asked)
        run_study(grid, settings, study_id, flower_run_id="1")  # type: ignore[arg-type]
        return folder

    return run
