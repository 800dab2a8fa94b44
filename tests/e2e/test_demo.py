"""The demo, end to end: real SuperLink, SuperNodes, trainers, control plane; TLS and node keys."""

import base64
import datetime
import socket
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedward.demo import MODEL

from .conftest import Running, fedward

Demo = tuple[Running, dict[str, Any], str]

pytestmark = pytest.mark.timeout(900)  # the first test waits for the whole demo


def test_the_federation_beats_every_hospital_alone(demo: Demo) -> None:
    """Same steps, same held-out rows, fixed seed: at least ten points above the best lone site."""
    _, report, _ = demo
    accuracy = report["accuracy"]
    assert len(accuracy["lone"]) == 3
    assert accuracy["federated"] > max(accuracy["lone"].values()) + 0.10
    assert accuracy["federated"] > accuracy["base"] + 0.10


def test_the_report_has_rounds_bytes_and_seconds(demo: Demo) -> None:
    """Three sites, at least five rounds, bytes per direction, a round's seconds split."""
    _, report, _ = demo
    assert len(report["sites"]) == 3
    rounds = len(report["rounds"])
    assert rounds >= 5
    assert report["state"] == "finished"
    for site in report["sites"].values():
        assert site["bytes"]["up"] > 0
        assert site["bytes"]["down"] > 0
        assert site["rounds"] == {"ok": rounds}
    seconds = report["seconds_per_round"]
    assert seconds["total"] == pytest.approx(seconds["training"] + seconds["other"], abs=0.01)


def test_our_bytes_agree_with_flowers(demo: Demo) -> None:
    """Payload bytes counted by us and Flower's own totals of the run differ by less than 1 %."""
    _, report, _ = demo
    counted = report["bytes"]
    assert counted["up"] == pytest.approx(counted["flower_in"], rel=0.01)
    assert counted["down"] == pytest.approx(counted["flower_out"], rel=0.01)


def test_the_base_is_loaded_once(demo: Demo) -> None:
    """One load at each hospital for prepare, eight rounds, evaluation and the lone run."""
    running, _, _ = demo
    nodes = running.plane.nodes()
    assert [node.progress.health.base_loads for node in nodes if node.progress] == [1, 1, 1]


def test_stock_peft_loads_the_adapter(demo: Demo, tmp_path: Path) -> None:
    """The exported folder is PEFT's own layout: the stock library loads it on the stock base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    running, report, _ = demo
    fedward("export", report["study_id"], "--out", str(tmp_path / "out"), folder=running.folder)
    base = AutoModelForCausalLM.from_pretrained(MODEL)
    model = PeftModel.from_pretrained(base, tmp_path / "out")
    factors = [value for name, value in model.named_parameters() if "lora_B" in name]
    assert factors
    assert any(float(value.abs().max()) > 0 for value in factors)
    assert (tmp_path / "out" / "report.json").is_file()


def test_plain_http_is_refused(demo: Demo) -> None:
    """No listener of the federation answers a request without TLS."""
    running, _, _ = demo
    for name, port in running.federation.ports.items():
        with socket.create_connection(("127.0.0.1", port), 5) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            plain.settimeout(5)
            try:
                answer = plain.recv(100)
            except OSError:
                answer = b""
        assert not answer.startswith(b"HTTP/1.1 200"), name


def test_an_unregistered_key_is_refused(demo: Demo) -> None:
    """A node with a key of its own making, correctly signed, gets 401 from the Fleet listener."""
    running, _, _ = demo
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    now = datetime.datetime.now(datetime.UTC).isoformat()
    headers = {
        "flwr-public-key": base64.b64encode(public).decode(),
        "flwr-signature": base64.b64encode(
            key.sign(now.encode(), ec.ECDSA(hashes.SHA256()))
        ).decode(),
        "flwr-timestamp": now,
        "content-type": "application/protobuf",
    }
    context = ssl.create_default_context(cafile=str(running.federation.layout.trust()))
    url = f"https://localhost:{running.federation.ports['fleet']}/v1/fleet/pull-messages"
    with httpx.Client(verify=context) as client:
        assert client.post(url, headers=headers, content=b"").status_code == 401


@pytest.mark.parametrize("path", ["/v1/control/list-runs", "/v1/runtime/acquire-task", "/docs"])
def test_hospitals_reach_nothing_but_the_fleet(demo: Demo, path: str) -> None:
    """Control, Runtime and documentation routes do not exist on the listener hospitals see."""
    running, _, _ = demo
    context = ssl.create_default_context(cafile=str(running.federation.layout.trust()))
    url = f"https://localhost:{running.federation.ports['fleet']}{path}"
    with httpx.Client(verify=context) as client:
        assert client.post(url, content=b"").status_code == 404


def test_the_control_plane_asks_for_a_token(demo: Demo) -> None:
    """Without a bearer token there are no studies to read and no metrics to scrape."""
    running, _, _ = demo
    context = ssl.create_default_context(cafile=str(running.federation.layout.trust()))
    with httpx.Client(verify=context, base_url=running.federation.dashboard) as client:
        assert client.get("/api/v1/studies").status_code == 401
        assert client.get("/metrics").status_code == 401
        assert client.get("/healthz").status_code == 200


def test_prometheus_finds_the_metrics(demo: Demo) -> None:
    """The names that the design promises are there, with this study's figures."""
    running, report, _ = demo
    context = ssl.create_default_context(cafile=str(running.federation.layout.trust()))
    token = (running.federation.layout.tokens / "operator.token").read_text().strip()
    with httpx.Client(verify=context, base_url=running.federation.dashboard) as client:
        text = client.get("/metrics", headers={"authorization": f"Bearer {token}"}).text
    round_line = f'fedward_study_round{{study="{report["study_id"]}"}} '
    values = [line.removeprefix(round_line) for line in text.splitlines() if round_line in line]
    assert [float(value) for value in values] == [len(report["rounds"])]
    assert text.count("fedward_node_up{") == 3


def test_status_and_logs_speak_of_the_study(demo: Demo) -> None:
    """`status` shows hospitals and the study; `logs` shows what a component said."""
    running, report, printed = demo
    status = fedward("status", folder=running.folder).stdout
    assert report["study_id"] in status
    assert "st-mary" in status
    assert "federated" in printed
    assert fedward("logs", "aggregator", folder=running.folder).stdout.strip()
