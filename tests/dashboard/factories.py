"""Synthetic studies: a valid event of each kind, and a whole federation's worth of them."""

import base64
import datetime
import ipaddress
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from protocol.control import NodeSnapshot
from protocol.envelope import seal
from protocol.events import (
    Event,
    RoundFinished,
    RoundStarted,
    SiteForecast,
    SitePrepared,
    SiteResult,
    StudyEnded,
    StudyEvaluated,
    StudyForecast,
    StudyQueued,
    StudyStarted,
)
from protocol.framing import Kind, frame
from protocol.messages import Evaluation, Gpu, Health, Progress, Task, Timing, Training
from protocol.states import SiteOutcome, StudyState, TrainerState
from protocol.study import StudySettings

SITES = ("alder", "birch", "cedar")


def settings(name: str = "demo", **more: Any) -> StudySettings:
    """A small study."""
    tree: dict[str, Any] = {"name": name, "model": {"base": "tiny"}, "rounds": {"count": 5}}
    return StudySettings.model_validate(tree | more)


def evaluation(correct: int = 60) -> Evaluation:
    """Numbers over 100 held-out rows."""
    return Evaluation(
        examples=100, loss=3.0 - correct / 50, choice_examples=100, choice_correct=correct
    )


def training(loss: float = 2.0) -> Training:
    """Numbers of ten local steps."""
    return Training(
        examples=160,
        steps=10,
        tokens=20_480,
        loss_first=loss + 0.1,
        loss_last=loss - 0.1,
        loss_mean=loss,
        update_norm=0.8,
        epoch=1.0,
    )


def health(**more: Any) -> Health:
    """A trainer at work, on one GPU."""
    fields: dict[str, Any] = {
        "state": TrainerState.TRAINING,
        "cpu": 0.4,
        "memory_used_bytes": 8 << 30,
        "memory_total_bytes": 32 << 30,
        "disk_free_bytes": 200 << 30,
        "disk_total_bytes": 500 << 30,
        "gpus": (
            Gpu(
                index=0,
                memory_used_bytes=6 << 30,
                memory_total_bytes=24 << 30,
                utilisation=0.9,
                temperature_celsius=65.0,
            ),
        ),
        "base_loads": 1,
        "started_at": 1_700_000_000.0,
        "software": "fedward 0.1.0, torch 2.13.0",
    }
    return Health(**(fields | more))


def timing() -> Timing:
    """Two seconds of work."""
    return Timing(queue=0.01, decode=0.05, train=1.5, evaluate=0.4, encode=0.04, total=2.0)


class Story:
    """Events of one study, numbered as they are made."""

    def __init__(self, study_id: str = "demo-0a1b2c", *, start: float | None = None) -> None:
        self.study_id = study_id
        self.seq = 0
        self.clock = time.time() - 3600 if start is None else start

    def make(self, kind: type[Any], **fields: Any) -> Any:
        """The next event."""
        self.seq += 1
        self.clock += 0.5
        return kind(study_id=self.study_id, seq=self.seq, at=self.clock, **fields)

    def queued(self, **more: Any) -> StudyQueued:
        """The first event."""
        name = self.study_id.rsplit("-", 1)[0]
        return self.make(StudyQueued, settings=settings(name, **more))

    def started(self, **more: Any) -> StudyStarted:
        """A ServerApp began."""
        return self.make(StudyStarted, **({"flower_run_id": "1234"} | more))

    def prepared(self, site: str, **more: Any) -> SitePrepared:
        """A site has the base model and its data."""
        fields = {
            "outcome": SiteOutcome.OK,
            "train_examples": 400,
            "heldout_examples": 100,
            "bytes_up": 2_000,
            "bytes_down": 900,
            "evaluation": evaluation(30),
            "health": health(),
        }
        return self.make(SitePrepared, site=site, **(fields | more))

    def result(self, site: str, number: int, **more: Any) -> SiteResult:
        """A site's update is in."""
        fields = {
            "outcome": SiteOutcome.OK,
            "weight": 160.0,
            "bytes_up": 100_000,
            "bytes_down": 110_000,
            "raw_bytes_up": 200_000,
            "raw_bytes_down": 200_000,
            "codec_up": "fp16",
            "codec_down": "fp16",
            "training": training(2.0 / (1 + number / 10)),
            "evaluation": evaluation(min(95, 30 + 6 * number)),
            "timing": timing(),
            "seconds": 2.5,
            "health": health(),
        }
        return self.make(SiteResult, site=site, round=number, **(fields | more))

    def missing(self, site: str, number: int, outcome: SiteOutcome, **more: Any) -> SiteResult:
        """A site that did not contribute."""
        return self.make(SiteResult, site=site, round=number, outcome=outcome, **more)

    def round_started(self, number: int, sites: tuple[str, ...] = SITES) -> RoundStarted:
        """Requests are out."""
        return self.make(RoundStarted, round=number, sites=sites, deadline_at=self.clock + 3600)

    def forecast(self, sites: tuple[str, ...] = SITES) -> StudyForecast:
        """What it will cost."""
        told = tuple(SiteForecast(site=site, bytes_up=900, bytes_down=2000) for site in sites)
        fields = {"bytes_up": 9000, "bytes_down": 20_000, "seconds_round": 3.0}
        return self.make(StudyForecast, sites=told, **fields)

    def round_finished(self, number: int, **more: Any) -> RoundFinished:
        """Aggregated."""
        fields = {
            "aggregated": True,
            "sites_ok": len(SITES),
            "seconds": 3.0,
            "seconds_training": 2.0,
            "seconds_aggregate": 0.02,
            "train_loss": 2.0 / (1 + number / 10),
            "evaluation": evaluation(min(95, 30 + 6 * number)),
            "update_norm": 0.7,
            "captured_energy": 0.97,
        }
        return self.make(RoundFinished, round=number, **(fields | more))

    def a_round(self, number: int, sites: tuple[str, ...] = SITES) -> list[Event]:
        """One whole round."""
        return [
            self.round_started(number, sites),
            *(self.result(site, number) for site in sites),
            self.round_finished(number, sites_ok=len(sites)),
        ]

    def beginning(self, sites: tuple[str, ...] = SITES) -> list[Event]:
        """Queued, started, every site prepared."""
        return [
            self.queued(),
            self.started(),
            *(self.prepared(site) for site in sites),
            self.forecast(sites),
        ]

    def whole(self, rounds: int = 5, sites: tuple[str, ...] = SITES) -> list[Event]:
        """A study from beginning to end."""
        found = self.beginning(sites)
        for number in range(1, rounds + 1):
            found += self.a_round(number, sites)
        found += [self.make(StudyEvaluated, site=site, evaluation=evaluation(90)) for site in sites]
        found.append(
            self.make(
                StudyEnded, state=StudyState.FINISHED, rounds=rounds, verdict="every round ended"
            )
        )
        return found


def snapshot(site: str, **more: Any) -> NodeSnapshot:
    """A node that is online."""
    now = time.time()
    fields = {
        "node_id": "77",
        "status": "online",
        "last_heartbeat_at": now,
        "last_pull_at": now,
        "wire_bytes_in": 120_000,
        "wire_bytes_out": 130_000,
        "wire_epoch": 1_700_000_000.0,
    }
    return NodeSnapshot(site=site, **(fields | more))


def progress(site: str, **more: Any) -> Progress:
    """Half of a round done."""
    fields = {
        "sent_at": time.time(),
        "study_id": "demo-0a1b2c",
        "task": Task.TRAIN,
        "round": 1,
        "step": 5,
        "steps": 10,
        "loss": 1.9,
        "tokens_per_second": 5_000.0,
        "health": health(),
    }
    return Progress(site=site, **(fields | more))


def framed(report: Progress, key: Ed25519PrivateKey) -> bytes:
    """The report as a link sends it."""
    return frame(Kind.PROGRESS, seal(report, b"", key, context="progress"))


class Hospitals:
    """Enrolled hospitals with their keys, and the registry that names them."""

    def __init__(self, file: Path, sites: tuple[str, ...] = SITES) -> None:
        self.file = file
        self.keys = {site: Ed25519PrivateKey.generate() for site in sites}
        self.revoked: dict[str, float] = {}
        self.write()

    def write(self) -> None:
        """Write the registry."""
        blob = base64.b64encode(b"not looked at here").decode()
        self.file.write_text(
            json.dumps(
                {
                    "sites": {
                        site: {
                            "node_public_key": f"ecdsa-sha2-nistp384 {blob}",
                            "signing_public_key": key.public_key()
                            .public_bytes(
                                serialization.Encoding.PEM,
                                serialization.PublicFormat.SubjectPublicKeyInfo,
                            )
                            .decode(),
                            "revoked_at": self.revoked.get(site),
                        }
                        for site, key in self.keys.items()
                    }
                }
            )
        )

    def report(self, site: str, **more: Any) -> bytes:
        """A signed, framed report of the site."""
        return framed(progress(site, **more), self.keys[site])


def certificate(folder: Path, *, days: float = 365.0, age: float = 0.1) -> tuple[Path, Path]:
    """A self-signed certificate for loopback, and its key; `days` are left, `age` are gone."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "control plane of a test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=age))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "plane.crt", folder / "plane.key"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    key_file.chmod(0o600)
    return cert_file, key_file


def batches(events: list[Event], size: int = 500) -> Iterator[list[dict[str, Any]]]:
    """Events as the supervisor sends them."""
    for start in range(0, len(events), size):
        yield [event.model_dump(mode="json") for event in events[start : start + size]]
