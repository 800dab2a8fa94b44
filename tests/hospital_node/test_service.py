"""The trainer as a process: asked over its socket, stopped, killed, and spoken to by a bad link."""

import contextlib
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hospital_node.ledger import read
from hospital_node.trainer.adapter import initial
from protocol.codec import decode_payload
from protocol.envelope import Envelope, seal
from protocol.framing import Kind, receive, send
from protocol.manifest import AdapterManifest
from protocol.messages import Reply, Request, Task
from protocol.states import Reason, TrainerState
from protocol.study import StudySettings

from .lab import Client, SiteFolder, Trainer, request, study, with_adapter, write_jsonl

PATIENT = "Jane Roe"
FILES = 'train = ["train.jsonl"]\nheldout = ["heldout.jsonl"]'  # [data], over files that are there
LONG = study(
    training={"steps": 9_000, "batch_size": 8, "learning_rate": 1e-4, "max_length": 96},
    rounds={"count": 4},
)


def manifest_of(client: Client, settings: StudySettings) -> AdapterManifest:
    """The layout of a study's adapter, from prepare."""
    reply, _ = client.ask(request(Task.PREPARE, settings, evaluate=False))
    assert reply.description is not None, reply
    return reply.description.manifest


def train_request(
    manifest: AdapterManifest, settings: StudySettings, **changes: Any
) -> tuple[Request, bytes]:
    """A round from the first adapter, without evaluation."""
    asked = request(Task.TRAIN, settings, evaluate=False, **changes)
    return with_adapter(asked, manifest, initial(manifest, settings.seed))


def wait_for(client: Client, state: TrainerState) -> None:
    """Until the status says so."""
    deadline = time.monotonic() + 60
    while client.status().health.state is not state:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def shared(
    bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """One trainer for the tests that leave it as it was; its rows name a patient."""
    folder = SiteFolder(tmp_path_factory.mktemp("shared"), bases("llama"))
    settings = folder.settings(extra="[limits]\nmax_update_norm = 5.0")
    write_jsonl(
        folder.home / "train.jsonl",
        [
            {"instruction": f"{PATIENT} has rash {number}", "input": PATIENT, "output": PATIENT}
            for number in range(20)
        ],
    )
    log = folder.home / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hospital_node.trainer", "--site", folder.home / "site.toml"],
            stderr=output,
        )
    client = Client(folder, settings.trainer.socket)
    deadline = time.monotonic() + 90
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        try:
            wait_for(client, TrainerState.IDLE)
            break
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.05)
    yield client
    process.terminate()
    assert process.wait(10) == 0
    assert PATIENT not in settings.trainer.ledger.read_text()


# The work


def test_a_study_over_the_socket(shared: Client) -> None:
    """Prepare, a round and a final evaluation, each signed and in the ledger with its size."""
    settings = study()
    before = shared.site.home / "state" / "ledger.jsonl"
    lines = len(list(read(before)))
    reply, data = shared.ask(request(Task.PREPARE, settings, want_initial=True))
    assert reply.description is not None
    assert reply.payload is not None
    manifest = reply.description.manifest
    vector = decode_payload(reply.payload, data, manifest, kind="adapter")
    np.testing.assert_array_equal(vector, initial(manifest, settings.seed))
    asked, payload = with_adapter(request(Task.TRAIN, settings), manifest, vector)
    reply, delta = shared.ask(asked, payload)
    assert reply.reason is None
    assert reply.training is not None
    assert reply.payload is not None
    vector = vector + decode_payload(reply.payload, delta, manifest, kind="delta")
    asked, payload = with_adapter(request(Task.EVALUATE, settings), manifest, vector)
    reply, nothing = shared.ask(asked, payload)
    assert reply.evaluation is not None
    assert nothing == b""
    entries = list(read(before))[lines:]
    assert [entry["task"] for entry in entries] == ["prepare", "train", "evaluate"]
    assert entries[1]["payload"]["size"] == len(delta)
    assert reply.health.base_loads == 1
    assert reply.timing.total > 0


def test_asking_again_gets_the_same_bytes(shared: Client) -> None:
    """A reply that was lost on its way is sent again, bit for bit, and no second round is run."""
    asked, payload = train_request(manifest_of(shared, study()), study())
    envelope = seal(asked, payload, shared.site.coordinator, context="request")
    first = shared.raw(envelope)
    assert shared.raw(envelope) == first
    other = asked.model_copy(update={"steps": 1})
    reply, _ = shared.ask(other, payload)
    assert reply.reason is Reason.REPLAYED


def test_two_requests_take_turns(shared: Client) -> None:
    """A second study's request waits, and says for how long."""
    manifest = manifest_of(shared, study())
    answers: dict[str, Reply] = {}

    def ask(name: str, steps: int) -> None:
        settings = study(
            name=name,
            training={"steps": steps, "batch_size": 8, "learning_rate": 1e-3, "max_length": 96},
        )
        answers[name] = shared.ask(*train_request(manifest, settings))[0]

    slow = threading.Thread(target=ask, args=("slow", 60))
    slow.start()
    wait_for(shared, TrainerState.TRAINING)
    ask("quick", 1)
    slow.join()
    assert {reply.reason for reply in answers.values()} == {None}
    assert answers["quick"].timing.queue > 0.05


def test_status_is_answered_while_it_trains(shared: Client) -> None:
    """Step, loss and speed are there at once, and move."""
    manifest = manifest_of(shared, LONG)
    answers: list[Reply] = []
    thread = threading.Thread(
        target=lambda: answers.append(shared.ask(*train_request(manifest, LONG, round=1))[0])
    )
    thread.start()
    wait_for(shared, TrainerState.TRAINING)
    seen = []
    for _ in range(4):
        started = time.monotonic()
        seen.append(shared.status())
        assert time.monotonic() - started < 1.0
        time.sleep(0.3)
    steps = [progress.step for progress in seen]
    assert steps == sorted(set(steps)), "it moves"
    assert (seen[-1].study_id, seen[-1].task, seen[-1].round) == ("trial-1", Task.TRAIN, 1)
    assert seen[-1].steps == 9_000
    assert seen[-1].loss is not None
    assert seen[-1].tokens_per_second > 0
    # The aggregator goes on to round 2: round 1 ends at its next step.
    reply, _ = shared.ask(*train_request(manifest, study(), round=2))
    thread.join(10)
    assert reply.reason is None
    assert answers[0].reason is Reason.INTERRUPTED


def test_a_large_update_does_not_leave(shared: Client) -> None:
    """An update beyond the site's norm limit becomes a reason, with no number of the training."""
    settings = study(
        training={"steps": 10, "batch_size": 8, "learning_rate": 1.0, "max_length": 96}
    )
    manifest = manifest_of(shared, settings)
    reply, data = shared.ask(*train_request(manifest, settings, study_id="trial-large"))
    assert reply.reason in {Reason.NORM_TOO_LARGE, Reason.NOT_FINITE}
    assert (reply.training, reply.payload, data) == (None, None, b"")


# Its files


def test_everything_it_writes_is_private(shared: Client) -> None:
    """Socket, ledger, caches and keys below the state folder are for this user alone."""
    manifest_of(shared, study())
    found = list((shared.site.home / "state").rglob("*"))
    assert {"trainer.sock", "ledger.jsonl", "cache", "fingerprint.key"} <= {f.name for f in found}
    for file in found:
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


def test_a_full_disk_lets_nothing_out(shared: Client) -> None:
    """When the ledger cannot be written no reply leaves, and the status says that it is broken."""
    if shutil.which("prlimit") is None:
        pytest.skip("needs prlimit of util-linux")
    limit = ["prlimit", f"--pid={_pid(shared)}"]
    asked = request(Task.PREPARE, study(name="full"), evaluate=False)
    # The kernel then refuses to let any file of that process grow beyond one byte.
    subprocess.run([*limit, "--fsize=1:unlimited"], check=True)
    try:
        with shared.connect() as stream:
            envelope = seal(asked, b"", shared.site.coordinator, context="request")
            send(stream, Kind.REQUEST, envelope)
            assert receive(stream) is None
        assert shared.status().health.state is TrainerState.BROKEN
    finally:
        subprocess.run([*limit, "--fsize=unlimited:unlimited"], check=True)
    reply, _ = shared.ask(asked)
    assert reply.reason is None, "and it goes on when there is room again"


# A bad link


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /etc/passwd HTTP/1.1\r\n\r\n",
        b"\x00" * 64,
        struct.pack(">BIHQ", 9, 0, 0, 0),
        struct.pack(">BIHQ", 1, 2**32 - 1, 0, 0),
        struct.pack(">BIHQ", 1, 0, 0, 2**64 - 1),
        struct.pack(">BIHQ", 1, 0, 65535, 0),
        struct.pack(">BIHQ", 1, 100, 64, 0) + b"x" * 20,
        struct.pack(">BIHQ", 2, 2, 0, 0) + b"{}",
        struct.pack(">BIHQ", 4, 0, 0, 0),
    ],
    ids=["http", "zeros", "kind", "header", "payload", "signature", "cut", "reply", "progress"],
)
def test_bytes_that_are_no_request_get_nothing(shared: Client, raw: bytes) -> None:
    """Foreign protocols, gigantic lengths, cut frames and frames for others: the line is closed."""
    with shared.connect() as stream:
        stream.settimeout(10)
        stream.sendall(raw)
        stream.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):  # what closing on unread bytes looks like
            assert stream.recv(100) == b""
    assert shared.status().health.state is TrainerState.IDLE


def test_a_gigantic_length_costs_no_memory(shared: Client) -> None:
    """Announcing 4 GiB and sending nothing does not make the trainer hold 4 GiB."""
    with shared.connect() as stream:
        stream.sendall(struct.pack(">BIHQ", 1, 2, 64, 4 << 30) + b"{}" + b"s" * 64)
        time.sleep(0.5)
        assert _rss(shared) < 2 << 30
        assert shared.status()


def _pid(client: Client) -> int:
    """The process behind the socket."""
    with client.connect() as stream:
        credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def _rss(client: Client) -> int:
    """Its resident bytes."""
    pages = int(Path(f"/proc/{_pid(client)}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize(
    "header",
    [
        b'{"task": "read_file", "path": "/etc/passwd"}',
        b'{"task": "train", "data": "train.jsonl"}',
        b"import os; os.system('id')",
        b"\x80\x04\x95pickle",
    ],
)
def test_what_nobody_signed_gets_a_code(shared: Client, header: bytes) -> None:
    """Requests for files or code get one signed reason and nothing that was asked for."""
    answer = shared.raw(Envelope(header, b"s" * 64, b"payload"))
    reply = shared.open(answer)
    assert reply.reason is Reason.BAD_SIGNATURE
    assert answer.payload == b""
    assert b"passwd" not in answer.header


def test_a_link_cannot_sign_for_the_coordinator(shared: Client) -> None:
    """A well-formed request under another key is refused by name."""
    asked = request(Task.PREPARE, study())
    forged = seal(asked, b"", Ed25519PrivateKey.generate(), context="request")
    reply = shared.open(shared.raw(forged))
    assert (reply.request_id, reply.reason) == (asked.request_id, Reason.BAD_SIGNATURE)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"read_file": "/etc/passwd"}, Reason.MALFORMED),
        ({"task": "shell"}, Reason.MALFORMED),
        ({"site": "south"}, Reason.WRONG_SITE),
        ({"study_id": "another-1"}, Reason.WRONG_STUDY),
    ],
)
def test_even_the_coordinator_cannot_ask_for_more(
    shared: Client, extra: dict[str, Any], reason: Reason
) -> None:
    """A signed request with an extra field, an unknown task or another's name gets a reason."""
    import json

    tree = json.loads(request(Task.PREPARE, study()).model_dump_json(exclude_none=True)) | extra
    header = json.dumps(tree).encode()
    signature = shared.site.coordinator.sign(b"fedward-v1-request\0" + header)
    answer = shared.raw(Envelope(header, signature))
    reply = shared.open(answer)
    assert reply.reason is reason
    assert reply.description is None
    assert answer.payload == b""


def test_no_row_is_in_any_answer(shared: Client) -> None:
    """Over a whole study, with failures, no byte that leaves has a patient's name."""
    settings = study(name="names")
    manifest = manifest_of(shared, settings)
    asked, payload = train_request(manifest, settings)
    requests = [
        (request(Task.PREPARE, settings, want_initial=True), b""),
        (asked, payload),
        (request(Task.LONE, settings), b""),
        (request(Task.PREPARE, study(prompt={"template": "chat"})), b""),
        (request(Task.PREPARE, study(adapter={"target_modules": [PATIENT]})), b""),
        (asked.model_copy(update={"request_id": "f" * 32}), payload[:-1]),
    ]
    for one, data in requests:
        answer = shared.raw(seal(one, data, shared.site.coordinator, context="request"))
        for part in (answer.header, answer.payload):
            assert PATIENT.encode() not in part
            assert b"Jane" not in part
    assert b"Jane" not in shared.status().model_dump_json().encode()


# Ending


def test_a_signal_ends_it_inside_training(start: Callable[..., Trainer], site: SiteFolder) -> None:
    """It ends with code 0 within 2 s, takes its socket away and sends no half answer."""
    trainer = start(site)
    client = trainer.client
    manifest = manifest_of(client, LONG)
    asked, payload = train_request(manifest, LONG)
    with client.connect() as stream:
        envelope = seal(asked, payload, site.coordinator, context="request")
        send(stream, Kind.REQUEST, envelope)
        wait_for(client, TrainerState.TRAINING)
        began = time.monotonic()
        assert trainer.stop() == 0
        assert time.monotonic() - began < 2.0
        assert receive(stream) is None, "no answer: the link asks the next trainer"
    assert not client.path.exists()
    assert "Traceback" not in trainer.log.read_text()
    entries = [entry for entry in read(site.home / "state/ledger.jsonl") if "task" in entry]
    assert [entry["task"] for entry in entries] == ["prepare"]


def test_a_killed_trainers_successor_does_the_round(
    start: Callable[..., Trainer], site: SiteFolder
) -> None:
    """kill -9 inside a round: the next process takes over the socket and the same request."""
    first = start(site)
    settings = study()
    manifest = manifest_of(first.client, settings)
    done, _ = first.client.ask(*train_request(manifest, settings, round=3, study_id="trial-3"))
    assert done.reason is None
    asked, payload = train_request(manifest, LONG)
    with first.client.connect() as stream:
        send(stream, Kind.REQUEST, seal(asked, payload, site.coordinator, context="request"))
        wait_for(first.client, TrainerState.TRAINING)
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    assert first.client.path.exists(), "nobody was there to remove it"
    second = start(site)
    # What the first process answered is remembered through the ledger.
    late, _ = second.client.ask(*train_request(manifest, settings, round=2, study_id="trial-3"))
    assert late.reason is Reason.WRONG_ROUND
    short, payload = train_request(manifest, settings, study_id="trial-4")
    reply, _ = second.client.ask(short, payload)
    assert reply.reason is None
    again, _ = second.client.ask(short, payload)
    assert again == reply
    assert second.stop(signal.SIGINT) == 0, "Ctrl-C ends it as SIGTERM does"


def test_a_second_trainer_is_refused(start: Callable[..., Trainer], site: SiteFolder) -> None:
    """One trainer a site: the second says so and the first is not disturbed."""
    trainer = start(site)
    done = run(site.home / "site.toml")
    assert done.returncode != 0
    assert "another process is writing this ledger" in done.stderr
    assert trainer.client.status()


@pytest.mark.parametrize(
    ("file", "content", "reason", "sentence"),
    [
        ("train.jsonl", None, Reason.DATA_UNREADABLE, "train.jsonl: there is no such file"),
        ("train.jsonl", f'{{"instruction": "q", "output": "a"}}\n{PATIENT}\n',
         Reason.DATA_UNREADABLE, "train.jsonl, line 2: not valid JSON"),
        ("heldout.jsonl", "", Reason.DATA_EMPTY, "heldout.jsonl: no rows"),
    ],
    ids=["missing", "row", "empty"],
)  # fmt: skip
def test_a_trainer_without_its_data_says_why_and_goes_on_when_they_are_back(
    start: Callable[..., Trainer],
    site: SiteFolder,
    file: str,
    content: str | None,
    reason: Reason,
    sentence: str,
) -> None:
    """The process stays: a study is refused with the reason, and a mended file is found."""
    site.write()
    path = site.home / file
    good = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    trainer = start(site, data=FILES)
    wait_for(trainer.client, TrainerState.BROKEN)
    assert trainer.client.status().health.reason is reason
    reply, _ = trainer.client.ask(request(Task.PREPARE, study(), evaluate=False))
    assert reply.reason is reason
    assert trainer.client.status().health.state is TrainerState.BROKEN
    path.write_bytes(good)
    wait_for(trainer.client, TrainerState.IDLE)
    assert manifest_of(trainer.client, study())
    log = trainer.log.read_text()
    assert log.count(sentence) <= 3, "told when it happens, not each time it is looked for"
    assert sentence in log
    assert PATIENT not in log


# Starting


def run(site: Path) -> subprocess.CompletedProcess[str]:
    """A start that is expected to fail."""
    return subprocess.run(
        [sys.executable, "-m", "hospital_node.trainer", "--site", site],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def _break(site: SiteFolder, what: str) -> None:
    home = site.home
    if what == "key":
        (home / "site.key").write_text("no key")
    elif what == "coordinator":
        (home / "coordinator.pem").unlink()
    elif what == "settings":
        toml = (home / "site.toml").read_text().replace("threads", "treads")
        (home / "site.toml").write_text(toml)
    elif what == "ledger":
        (home / "state").mkdir()
        (home / "state/ledger.jsonl").write_text('{"seq": 1}\n')
    elif what == "device":
        toml = (home / "site.toml").read_text().replace('"cpu"', '"cuda"')
        (home / "site.toml").write_text(toml)


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("key", "site.key: not an unencrypted private key"),
        ("coordinator", "coordinator.pem: cannot read the public key"),
        ("settings", "trainer.treads: unknown key, did you mean 'threads'?"),
        ("ledger", "ledger.jsonl, line 1: the ledger was altered"),
        ("device", 'trainer.device = "cuda", but torch sees no CUDA GPU'),
    ],
)
def test_a_start_that_cannot_be_is_one_sentence(site: SiteFolder, what: str, sentence: str) -> None:
    """Settings, files, keys, ledger and device: a sentence on stderr, a code, no traceback."""
    if what == "device" and Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    site.write()
    _break(site, what)
    done = run(site.home / "site.toml")
    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert PATIENT not in done.stderr
    assert not (site.home / "state/trainer.sock").exists()
