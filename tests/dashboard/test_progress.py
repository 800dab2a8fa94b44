"""Hospitals' reports: signed, fresh, and never more than a report."""

import time

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.control import MAX_PROGRESS_BYTES, NODES, SITE_PROGRESS
from protocol.envelope import seal
from protocol.framing import Kind, frame

from .factories import framed, health, progress
from .service import Service


def post(service: Service, body: bytes) -> httpx.Response:
    with service.client(None) as client:
        return client.post(SITE_PROGRESS, content=body)


def kind_of(answer: httpx.Response) -> str:
    return str(answer.json()["type"]).removeprefix("urn:fedward:problem:")


def test_a_report_is_shown_with_the_hospital(service: Service) -> None:
    """Steps, loss, health and the clock's offset are what the hospital signed."""
    body = service.hospitals.report("alder", step=7, sent_at=time.time() - 2)
    assert post(service, body).status_code == 204
    node = service.get(f"{NODES}/alder")
    assert (node["progress"]["step"], node["progress"]["steps"]) == (7, 10)
    assert -3 < node["clock_offset_seconds"] < -1.9


def test_a_report_cannot_be_replayed_or_come_late(service: Service) -> None:
    """The same report, or an older one, changes nothing."""
    now = time.time()
    body = service.hospitals.report("birch", sent_at=now, step=5)
    assert post(service, body).status_code == 204
    assert kind_of(post(service, body)) == "replayed"
    older = service.hospitals.report("birch", sent_at=now - 1, step=9)
    assert kind_of(post(service, older)) == "replayed"
    assert service.get(f"{NODES}/birch")["progress"]["step"] == 5


def test_a_hospital_cannot_report_for_another(service: Service) -> None:
    """The key must be the one that the registry has for the site that is named."""
    body = framed(progress("alder"), service.hospitals.keys["birch"])
    answer = post(service, body)
    assert (answer.status_code, kind_of(answer)) == (401, "bad-signature")


def test_a_stranger_is_refused(service: Service) -> None:
    """A site that nobody enrolled has no key to be checked with."""
    answer = post(service, framed(progress("nobody"), Ed25519PrivateKey.generate()))
    assert (answer.status_code, kind_of(answer)) == (401, "unknown-site")


def test_a_signature_for_another_purpose_is_refused(service: Service) -> None:
    """A reply's signature does not make a report."""
    envelope = seal(progress("alder"), b"", service.hospitals.keys["alder"], context="reply")
    assert kind_of(post(service, frame(Kind.PROGRESS, envelope))) == "bad-signature"


def test_a_clock_far_ahead_is_refused_and_named(service: Service) -> None:
    """Accepting it would shut out every report after the clock is set right."""
    answer = post(service, service.hospitals.report("cedar", sent_at=time.time() + 3600))
    assert (answer.status_code, kind_of(answer)) == (409, "clock-ahead")
    assert answer.json()["offset_seconds"] == pytest.approx(3600, abs=5)
    assert post(service, service.hospitals.report("cedar")).status_code == 204


def test_what_is_no_report_is_refused(service: Service) -> None:
    """Another kind, a payload, a wrong length, noise: 400, never 500."""
    good = service.hospitals.report("alder")
    key = service.hospitals.keys["alder"]
    with_payload = seal(progress("alder"), b"payload", key, context="progress")
    for body in (
        b"",
        b"\x04",
        good[:-1],
        good + b"x",
        bytes([2]) + good[1:],
        bytes([9]) + good[1:],
        frame(Kind.PROGRESS, with_payload),
        b"\x04" + b"\xff" * 40,
    ):
        assert post(service, body).status_code == 400, body[:20]


def test_a_large_body_is_refused_before_it_is_read(service: Service) -> None:
    """A peer without a key cannot make us hold more than 64 KiB."""
    assert post(service, b"\x04" * (MAX_PROGRESS_BYTES + 1)).status_code == 413


def test_a_revoked_hospital_is_refused_at_once(fresh: Service) -> None:
    """The registry is read again when it changes; no restart is needed."""
    assert post(fresh, fresh.hospitals.report("alder")).status_code == 204
    fresh.hospitals.revoked["alder"] = time.time()
    fresh.hospitals.write()
    answer = post(fresh, fresh.hospitals.report("alder"))
    assert (answer.status_code, kind_of(answer)) == (403, "revoked-site")
    assert fresh.get(f"{NODES}/alder")["revoked"]


def test_a_trainer_that_starts_anew_is_counted(fresh: Service) -> None:
    """A start time that changed is a restart; the count survives ours."""
    for started in (100.0, 100.0, 200.0, 300.0):
        report = fresh.hospitals.report("alder", health=health(started_at=started))
        assert post(fresh, report).status_code == 204
    assert fresh.get(f"{NODES}/alder")["trainer_restarts"] == 2
    assert fresh.stop() == 0
    fresh.start()
    assert fresh.get(f"{NODES}/alder")["trainer_restarts"] == 2
