"""The one door: what passes, what is stopped, and that nothing of a patient is in the bytes."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hospital_node.ledger import Ledger, LedgerError, read
from hospital_node.outbound import Outbound, OutboundRefused, Update, reason_of
from hospital_node.trainer.errors import Cancelled, Refusal
from protocol.codec import decode_payload
from protocol.envelope import Envelope, check_payload, unseal
from protocol.manifest import AdapterManifest, TensorSpec
from protocol.messages import Health, Progress, Reply, Task, Training
from protocol.states import Reason

PATIENT = "Jane Roe, born 1961-04-02, HIV positive"
NAME = "base_model.model.layers.0.q_proj.lora_{}.weight"
MANIFEST = AdapterManifest(
    tensors=(
        TensorSpec(name=NAME.format("A"), shape=(2, 8)),
        TensorSpec(name=NAME.format("B"), shape=(8, 2)),
    )
)
TRAINING = Training(
    examples=4, steps=1, tokens=9, loss_first=1, loss_last=1, loss_mean=1, update_norm=1, epoch=1
)


def tensors(**changes: Any) -> dict[str, Any]:
    """Both tensors of the manifest, filled with ones; A and B can be changed."""
    made = {
        NAME.format("A"): np.ones((2, 8), np.float32),
        NAME.format("B"): np.ones((8, 2), np.float32),
    }
    return made | {NAME.format(key): value for key, value in changes.items()}


def update(values: Any = None, **changes: Any) -> Update:
    """A good delta with one thing changed."""
    fields: dict[str, Any] = {
        "kind": "delta", "tensors": values if values is not None else tensors(),
        "manifest": MANIFEST, "codec": "fp32", "max_norm": 100.0,
    }  # fmt: skip
    return Update(**(fields | changes))


def reply(**changes: Any) -> Reply:
    """A train reply as the tasks make it: whole but for its payload."""
    fields: dict[str, Any] = {
        "request_id": "0" * 32, "study_id": "trial-1", "site": "north", "task": Task.TRAIN,
        "round": 3, "training": TRAINING,
    }  # fmt: skip
    return Reply.model_construct(**(fields | changes))


class Lab:
    """A door with its key, its ledger, and everything it let out."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.jsonl"
        self.key = Ed25519PrivateKey.generate()
        self.ledger = Ledger(self.path)
        self.door = Outbound("north", self.key, self.ledger)

    def opened(self, envelope: Envelope) -> Reply:
        header = unseal(envelope, Reply, self.key.public_key(), context="reply")
        check_payload(envelope.payload, header.payload)
        return header

    def refuses(self, header: Any, beside: Update | None = None) -> OutboundRefused:
        """Nothing leaves and nothing is recorded as having left."""
        lines = self.path.read_bytes()
        with pytest.raises(OutboundRefused) as caught:
            self.door.release(header, beside, request_digest="d" * 64)
        assert self.path.read_bytes() == lines
        assert PATIENT not in str(caught.value)
        return caught.value


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A fresh door."""
    made = Lab(tmp_path)
    yield made
    made.ledger.close()


def test_a_good_update_leaves_signed_and_recorded(lab: Lab) -> None:
    """The reply decodes to the same numbers, and the ledger says what and how much left."""
    envelope = lab.door.release(reply(), update(), request_digest="d" * 64)
    header = lab.opened(envelope)
    assert header.payload is not None
    vector = decode_payload(header.payload, envelope.payload, MANIFEST, kind="delta")
    assert vector.tolist() == [1.0] * 32
    (line,) = read(lab.path)
    assert (line["study"], line["round"], line["task"]) == ("trial-1", 3, "train")
    assert line["payload"]["size"] == len(envelope.payload)
    assert line["header_bytes"] == len(envelope.header) + len(envelope.signature)
    assert line["payload"]["digest"] == header.payload.digest
    assert line["norm"] == pytest.approx(32**0.5)
    assert line["numbers"]["training"]["examples"] == 4


def test_the_site_learns_what_was_sent_only_once_it_is_recorded(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the ledger's line, the sender is told what the aggregator will decode; never before."""
    told: list[list[float]] = []
    beside = update(tensors(A=np.full((2, 8), 0.3, np.float32)), codec="int8",
                    after=lambda sent: told.append(sent.tolist()))  # fmt: skip
    envelope = lab.door.release(reply(), beside, request_digest="d" * 64)
    header = lab.opened(envelope)
    assert header.payload is not None
    decoded = decode_payload(header.payload, envelope.payload, MANIFEST, kind="delta")
    assert told == [decoded.tolist()]

    def full(_: object) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(lab.ledger, "append", full)
    with pytest.raises(LedgerError):
        lab.door.release(reply(), beside, request_digest="d" * 64)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (tensors(A=np.ones((8, 2), np.float32)), Reason.OUTBOUND_REFUSED),
        (tensors(A=np.ones((2, 8), np.float64)), Reason.OUTBOUND_REFUSED),
        (tensors() | {PATIENT: np.ones(2, np.float32)}, Reason.OUTBOUND_REFUSED),
        ({NAME.format("A"): np.ones((2, 8), np.float32)}, Reason.OUTBOUND_REFUSED),
        (tensors(A=np.full((2, 8), np.nan, np.float32)), Reason.NOT_FINITE),
        (tensors(B=np.full((8, 2), -np.inf, np.float32)), Reason.NOT_FINITE),
        (tensors(A=np.full((2, 8), 1e3, np.float32)), Reason.NORM_TOO_LARGE),
        (tensors(A=np.full((2, 8), 3e38, np.float32)), Reason.NORM_TOO_LARGE),
    ],
    ids=["shape", "dtype", "extra", "missing", "nan", "infinity", "norm", "huge"],
)
def test_undeclared_tensors_are_stopped(lab: Lab, bad: dict[str, Any], reason: Reason) -> None:
    """A tensor of another name, shape, dtype, or with absurd values does not leave."""
    assert lab.refuses(reply(), update(bad)).reason is reason


def test_the_norm_limit_counts_for_a_delta_only(lab: Lab) -> None:
    """An initial adapter comes from the study's seed, so the site's limit has nothing to guard."""
    beside = update(kind="adapter", max_norm=float("inf"))
    assert lab.opened(lab.door.release(reply(), beside, request_digest="d" * 64)).payload


def test_tensor_names_cannot_carry_text(lab: Lab) -> None:
    """A manifest whose names are not PEFT's is stopped, beside an update and in a description."""
    for name in (PATIENT, f"base_model.{PATIENT}.lora_A.weight", "lm_head.weight"):
        manifest = AdapterManifest(tensors=(TensorSpec(name=name, shape=(2,)),))
        values = {name: np.ones(2, np.float32)}
        lab.refuses(reply(), update(values, manifest=manifest))
        description = {
            "manifest": manifest.model_dump(), "initial_digest": "a" * 64, "base_sha256": "a" * 64,
            "base_parameters": 1, "train_examples": 1, "heldout_examples": 1,
            "data_fingerprint": "a" * 64,
        }  # fmt: skip
        lab.refuses(reply(task=Task.PREPARE, training=None, round=0, description=description))


class _Talkative(Reply):
    """A reply with one field too many."""

    note: str = PATIENT


def _progress(**changes: Any) -> Progress:
    return Progress.model_construct(**({"site": "north", "sent_at": 1.0} | changes))


@pytest.mark.parametrize(
    "header",
    [
        reply(site=PATIENT),
        reply(study_id=PATIENT),
        reply(request_id=PATIENT),
        reply(training=PATIENT),
        reply(training=TRAINING.model_copy(update={"examples": PATIENT})),
        reply(reason=PATIENT, training=None),
        reply(health=Health(software=PATIENT)),
        reply(health=Health(software="jane roe; 1961")),
        reply(payload=PATIENT),
        reply(site="south"),
        _Talkative.model_construct(**dict(reply())),
        _progress(study_id=PATIENT),
        _progress(loss=PATIENT),
        _progress(health=Health(software=PATIENT)),
        {"note": PATIENT},
    ],
    ids=lambda header: type(header).__name__,
)
def test_text_has_no_place_in_a_header(lab: Lab, header: Any) -> None:
    """Patient-like text in any field stops the message."""
    lab.refuses(header, update() if isinstance(header, Reply) else None)


@pytest.mark.parametrize(
    "header",
    [reply(note=PATIENT), reply(training=TRAINING.model_copy(update={"note": PATIENT}))],
    ids=["in the reply", "in its numbers"],
)
def test_undeclared_fields_are_not_in_the_bytes(lab: Lab, header: Any) -> None:
    """A field that the models do not declare is stopped or dropped; either way it stays here."""
    bytes_out = b""
    with contextlib.suppress(OutboundRefused):
        envelope = lab.door.release(header, update(), request_digest="d" * 64)
        bytes_out = envelope.header + envelope.payload
    for word in ("Jane", "1961", "HIV"):
        assert word.encode() not in bytes_out
        assert word not in lab.path.read_text()


def test_a_refusal_carries_nothing_else(lab: Lab) -> None:
    """A reply with a reason and tensors, or with results, is stopped."""
    lab.refuses(reply(reason=Reason.TRAINER_ERROR, training=None), update())
    lab.refuses(reply(reason=Reason.TRAINER_ERROR))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Refusal(Reason.DATA_EMPTY, PATIENT), Reason.DATA_EMPTY),
        (OutboundRefused(Reason.NOT_FINITE, PATIENT), Reason.NOT_FINITE),
        (Cancelled(PATIENT), Reason.INTERRUPTED),
        (MemoryError(PATIENT), Reason.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), Reason.OUT_OF_MEMORY),
        (ValueError(PATIENT), Reason.TRAINER_ERROR),
        (KeyError(PATIENT), Reason.TRAINER_ERROR),
        (type("OutOfMemoryError", (RuntimeError,), {})(PATIENT), Reason.OUT_OF_MEMORY),
        (type("Odd", (Exception,), {"reason": PATIENT})(PATIENT), Reason.TRAINER_ERROR),
    ],
)
def test_exceptions_become_codes(lab: Lab, error: Exception, reason: Reason) -> None:
    """Whatever an exception says, a code is what leaves."""
    assert reason_of(error) is reason
    envelope = lab.door.release(reply(reason=reason_of(error), training=None))
    assert b"Jane" not in envelope.header
    assert lab.opened(envelope).reason is reason


def test_no_ledger_no_departure(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the line cannot be written, the envelope is not handed out."""

    def fail(_: dict[str, Any]) -> None:
        raise LedgerError("disk full")

    monkeypatch.setattr(lab.ledger, "append", fail)
    with pytest.raises(LedgerError):
        lab.door.release(reply(), update(), request_digest="d" * 64)


def test_the_line_is_on_disk_before_the_envelope_is_out(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is record, then leave: at the moment of the record nothing has been returned."""
    seen: list[str] = []
    append = lab.ledger.append
    monkeypatch.setattr(lab.ledger, "append", lambda entry: (append(entry), seen.append("line")))
    lab.door.release(reply(), update(), request_digest="d" * 64)
    seen.append("out")
    assert seen == ["line", "out"]


def test_progress_is_counted_not_listed(lab: Lab) -> None:
    """Progress and refusals of unsigned requests add up in the next line, and fill no disk."""
    sizes = [lab.door.release(_progress()).size for _ in range(5)]
    sizes.append(lab.door.release(reply(reason=Reason.BAD_SIGNATURE, training=None)).size)
    assert list(read(lab.path)) == []
    lab.door.release(reply(), update(), request_digest="d" * 64)
    (line,) = read(lab.path)
    assert line["counted"] == {"progress": 5, "refusals": 1, "bytes": sum(sizes)}
    lab.door.release(_progress())
    lab.door.close()
    assert list(read(lab.path))[-1]["counted"]["progress"] == 1


def test_progress_carries_no_tensors(lab: Lab) -> None:
    """The status channel cannot be used to get an adapter out."""
    lab.refuses(_progress(), update())


def test_the_ledger_has_no_free_text(lab: Lab) -> None:
    """Every string in a line is a code, a digest, a name or versions."""
    lab.door.release(
        reply(health=Health(software="python 3.11.2; torch 2.13.0+cpu")),
        update(),
        request_digest="d" * 64,
    )
    strings: list[str] = []

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            for inner in value.values():
                collect(inner)
        elif isinstance(value, str):
            strings.append(value)

    collect(json.loads(lab.path.read_text()))
    assert all(len(text) <= 64 and "," not in text for text in strings)
