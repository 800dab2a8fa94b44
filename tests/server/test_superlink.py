"""The SuperLink's two doors, through a real process and real TLS."""

import base64
import http.client
import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from certs.local import FederationPaths, make_federation
from protocol.flower import FLEET_ROUTES
from protocol.registry import load_registry
from server._flower import node_key_bytes
from server.settings import AggregatorSettings, load_aggregator


@dataclass
class Running:
    """A SuperLink process and how to reach it."""

    settings: AggregatorSettings
    certificate: Path
    key: Path
    ca: Path

    @property
    def public(self) -> str:
        return f"https://127.0.0.1:{self.settings.fleet.port}"

    @property
    def private(self) -> str:
        return f"https://127.0.0.1:{self.settings.private.port}"

    def client(self) -> httpx.Client:
        context = ssl.create_default_context(cafile=self.ca)
        return httpx.Client(verify=context, timeout=10, trust_env=False)


@pytest.fixture(scope="module")
def superlink(
    federation: FederationPaths,
    write_aggregator: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    """One SuperLink for the whole module: Flower takes seconds to import."""
    folder = tmp_path_factory.mktemp("superlink")
    certificate, key = folder / "server.crt", folder / "server.key"
    shutil.copy(federation.aggregator.cert, certificate)
    shutil.copy(federation.aggregator.key, key)
    path = write_aggregator(folder, certificate=certificate, key=key)
    process = subprocess.Popen(
        [sys.executable, "-m", "server.superlink", "--settings", str(path)],
        stdout=(folder / "log").open("wb"),
        stderr=subprocess.STDOUT,
        env=dict(os.environ),
    )
    running = Running(load_aggregator(path), certificate, key, federation.ca)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            try:
                with running.client() as client:
                    if client.get(running.public + "/health").status_code == 200:
                        break
            except httpx.TransportError:
                time.sleep(0.2)
        yield running
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def enrolled(registry: Path) -> dict[str, str]:
    """The header that hospital-a's SuperNode sends."""
    site = load_registry(registry).sites["hospital-a"]
    return {"flwr-public-key": base64.b64encode(node_key_bytes(site)).decode()}


def test_plain_http_is_refused(superlink: Running) -> None:
    """Neither listener speaks without TLS."""
    for port in (superlink.settings.fleet.port, superlink.settings.private.port):
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False)


def test_unknown_key_is_refused(superlink: Running, enrolled: dict[str, str]) -> None:
    """A node key that is not in the registry gets 401 before its body is looked at."""
    with superlink.client() as client:
        for headers in ({}, {"flwr-public-key": base64.b64encode(b"some key").decode()}):
            reply = client.post(superlink.public + "/v1/fleet/pull-messages", headers=headers)
            assert reply.status_code == 401
            assert "date" in reply.headers  # nodes read the aggregator's clock from it
        known = client.post(
            superlink.public + "/v1/fleet/pull-messages",
            headers=enrolled | {"content-type": "application/protobuf"},
        )
        assert known.status_code == 401  # Flower's own: the header is there, the signature is not
        assert "enrolled" not in known.text


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-nodes",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/fedward/wire",
        "/docs",
        "/openapi.json",
        "/",
    ],
)
def test_public_port_has_nothing_else(
    superlink: Running, enrolled: dict[str, str], path: str
) -> None:
    """What is not on the list is not there, enrolled or not."""
    with superlink.client() as client:
        for method in ("GET", "POST"):
            reply = client.request(method, superlink.public + path, headers=enrolled)
            assert reply.status_code == 404, (method, path, reply.text)


def test_public_routes_are_flowers(superlink: Running, enrolled: dict[str, str]) -> None:
    """Each route on the list exists in the installed Flower (it answers 401, not 404)."""
    with superlink.client() as client:
        for route in FLEET_ROUTES:
            reply = client.post(
                f"{superlink.public}/v1/fleet/{route}",
                headers=enrolled | {"content-type": "application/protobuf"},
            )
            assert reply.status_code == 401, (route, reply.text)


def test_large_bodies_stop_at_the_door(superlink: Running, enrolled: dict[str, str]) -> None:
    """20 MB are refused, announced or chunked, and the SuperLink goes on."""
    for chunked in (False, True):
        connection = http.client.HTTPSConnection(
            "127.0.0.1",
            superlink.settings.fleet.port,
            context=ssl.create_default_context(cafile=superlink.ca),
            timeout=20,
        )
        connection.putrequest("POST", "/v1/fleet/push-object")
        for name, value in enrolled.items():
            connection.putheader(name, value)
        if chunked:
            connection.putheader("transfer-encoding", "chunked")
        else:
            connection.putheader("content-length", str(20_000_000))
        connection.endheaders()
        try:
            for _ in range(20):
                block = b"x" * 1_000_000
                connection.send(b"%x\r\n%s\r\n" % (len(block), block) if chunked else block)
        except OSError:
            pass  # the door closed while we were still pushing
        assert connection.getresponse().status == 413
        connection.close()
    with superlink.client() as client:
        assert client.get(superlink.public + "/health").status_code == 200
        token = superlink.settings.control_token.read_text()
        wire = client.get(
            superlink.private + "/fedward/wire", headers={"authorization": f"Bearer {token}"}
        ).json()
    assert wire["refused"]["too_large"] == 2
    assert wire["sites"]["hospital-a"]["refused"] >= 2


def test_control_needs_its_token(superlink: Running) -> None:
    """The private listener's Control API and counters are closed without the bearer token."""
    token = superlink.settings.control_token
    assert token.stat().st_mode & 0o777 == 0o600
    assert superlink.settings.superexec_secret.stat().st_mode & 0o777 == 0o600
    with superlink.client() as client:
        for path in ("/v1/control/list-nodes", "/fedward/wire"):
            assert client.post(superlink.private + path).status_code == 401
            wrong = {"authorization": "Bearer wrong"}
            assert client.post(superlink.private + path, headers=wrong).status_code == 401
        right = {"authorization": f"Bearer {token.read_text()}"}
        reply = client.post(
            superlink.private + "/v1/control/list-nodes",
            headers=right | {"content-type": "application/protobuf"},
        )
        assert reply.status_code == 200
        for path in ("/docs", "/openapi.json", "/v1/fleet/pull-messages"):
            assert client.get(superlink.private + path, headers=right).status_code == 404


def test_progress_answers_503_when_the_control_plane_is_down(superlink: Running) -> None:
    """A control plane that is away costs a report, never a connection for long."""
    with superlink.client() as client:
        started = time.monotonic()
        reply = client.post(superlink.public + "/v1/site/progress", content=b"frame")
        assert reply.status_code == 503
        assert time.monotonic() - started < 5
        large = client.post(superlink.public + "/v1/site/progress", content=b"x" * 100_000)
        assert large.status_code == 413


def test_certificate_is_renewed_without_restart(superlink: Running, tmp_path: Path) -> None:
    """A new certificate in the same files is on the wire within seconds."""

    def serial() -> int:
        pem = ssl.get_server_certificate(("127.0.0.1", superlink.settings.fleet.port))
        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    before = serial()
    other = make_federation(tmp_path / "other", ["hospital-a"])
    for source, target in (
        (other.aggregator.cert, superlink.certificate),
        (other.aggregator.key, superlink.key),
    ):
        staged = tmp_path / target.name
        shutil.copy(source, staged)
        staged.replace(target)
    deadline = time.monotonic() + 10
    while serial() == before and time.monotonic() < deadline:
        time.sleep(0.2)
    expected = x509.load_pem_x509_certificate(other.aggregator.cert.read_bytes()).serial_number
    assert serial() == expected
    superlink.ca = other.ca


def test_taken_port_is_one_sentence(
    superlink: Running, write_aggregator: Callable[..., Path], tmp_path: Path
) -> None:
    """A second SuperLink on the same port says which port, and what to do."""
    path = write_aggregator(tmp_path, fleet_port=superlink.settings.fleet.port)
    result = subprocess.run(
        [sys.executable, "-m", "server.superlink", "--settings", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert f"fleet.port = {superlink.settings.fleet.port}" in result.stderr
    assert "Traceback" not in result.stderr
