"""The ends of certificates: on the page, in the metrics, and before a study begins."""

import json
import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from certs import CA
from protocol.control import Role

from .factories import Story, certificate
from .service import Service
from .test_studies import submit


def enrol_until(service: Service, **days: float) -> None:
    """Write each hospital's last day into the registry, as enrolment does."""
    service.hospitals.write()
    body = json.loads(service.hospitals.file.read_text())
    for site, left in days.items():
        end = datetime.now(UTC) + timedelta(days=left)
        body["sites"][site]["not_after"] = end.strftime("%Y-%m-%dT%H:%M:%SZ")
    service.hospitals.file.write_text(json.dumps(body))


def test_every_end_is_on_the_page_and_in_the_metrics(fresh: Service) -> None:
    """The first to end in front, with 30, 7 or 1 and the command that renews it."""
    enrol_until(fresh, alder=0.5, birch=6, cedar=29)
    found = {one["name"]: one for one in fresh.get("/api/v1/certificates")}
    assert list(found) == ["alder", "birch", "cedar", "control-plane"]
    assert [one["warning"] for one in found.values()] == [1, 7, 30, None]
    assert "certs approve --renew" in found["alder"]["renew"]
    assert found["control-plane"]["renew"] == "`fedward certs rotate`"
    with fresh.client(Role.OPERATOR) as client:
        text = client.get("/metrics").text
        ready = client.get("/readyz").json()
    for name in found:
        assert f'fedward_certificate_not_after_timestamp_seconds{{certificate="{name}"}}' in text
    assert ready["ready"] is True
    assert len(ready["warnings"]) == 3
    assert "alder" not in str(ready)


def test_a_study_that_would_outlive_a_certificate_is_not_started(fresh: Service) -> None:
    """The sentence names the certificate, its day and the command; a shorter study may begin."""
    enrol_until(fresh, alder=0.5, birch=60, cedar=60)
    long = {"rounds": {"count": 20, "deadline_seconds": 3600}}
    refused = submit(fresh, name="long", **long)
    assert refused.status_code == 409
    told = refused.json()["detail"]
    for words in ("the certificate of alder ends at", "20 rounds of at most 3600 s", "--renew"):
        assert words in told
    assert submit(fresh, name="others", sites=["birch", "cedar"], **long).status_code == 201
    assert submit(fresh, rounds={"count": 2, "deadline_seconds": 600}).status_code == 201
    assert [study["name"] for study in fresh.get("/api/v1/studies")["items"]] == ["demo", "others"]


def test_the_estimate_learns_from_the_last_study_of_that_name(fresh: Service) -> None:
    """Rounds that took seconds are not taken for hours the next time."""
    enrol_until(fresh, alder=0.5, birch=60, cedar=60)
    fresh.send(Story("demo-000001").whole(rounds=3))
    assert submit(fresh, rounds={"count": 20, "deadline_seconds": 3600}).status_code == 201


def test_a_renewed_certificate_is_served_without_a_restart(fresh: Service) -> None:
    """The next connection sees the new one; half a pair is never taken."""
    before = served(fresh)
    key = fresh.folder / "plane.key"
    old = key.read_bytes()
    spare = fresh.folder / "spare"
    spare.mkdir()
    certificate(spare)
    (fresh.folder / "plane.crt").write_bytes((spare / "plane.crt").read_bytes())
    time.sleep(2.5)
    assert key.read_bytes() == old
    assert served(fresh) == before
    key.write_bytes((spare / "plane.key").read_bytes())
    until = time.monotonic() + 10
    while served(fresh) == before:
        assert time.monotonic() < until
        time.sleep(0.1)


def served(service: Service) -> str:
    """The certificate that the listener shows."""
    return ssl.get_server_certificate(("127.0.0.1", service.port))


def test_the_revocation_lists_end_is_watched(tmp_path: Path) -> None:
    """The file that the edge reads may hold several lists; the first to end counts."""
    authority = CA.create()
    file = tmp_path / "crl.pem"
    lists = [authority.crl_pem(lifetime=timedelta(days=days)) for days in (6, 0.5)]
    file.write_bytes(b"".join(lists))
    service = Service(tmp_path, more='revocation_list = "crl.pem"')
    try:
        (found,) = (
            one for one in service.get("/api/v1/certificates") if one["name"] == "revocation-list"
        )
        assert found["warning"] == 1
        assert abs(found["not_after"] - time.time() - 43_200) < 300
        with service.client(Role.OPERATOR) as client:
            name = "fedward_revocation_list_end_timestamp_seconds{}"
            assert f"{name} {found['not_after']!r}" in client.get("/metrics").text
        time.sleep(0.05)  # a renewed list has a time of its own
        file.write_bytes(lists[0])
        renewed = {one["name"]: one for one in service.get("/api/v1/certificates")}
        assert renewed["revocation-list"]["warning"] is None
    finally:
        service.stop()
