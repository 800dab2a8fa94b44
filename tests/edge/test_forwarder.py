"""The link's forwarder: a client without a certificate reaches the edge with the site's."""

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import tomli_w
from edge_lab import Edge, Origin, free_port, node_header, put, wait_until

from certs import CA
from certs.local import SitePaths
from hospital_node.link.runtime_tls import write_loopback_certificate
from protocol.errors import SettingsError
from protocol.settings import parse
from protocol.site import AggregatorSettings

PULL = "/v1/fleet/pull-messages"


@dataclass
class Proxy:
    """An HTTPS proxy that allows CONNECT with a password, and counts what it carried."""

    port: int
    password: str = ""
    carried: int = 0
    asked: list[str] = field(default_factory=list)


@dataclass
class Running:
    """A forwarder process and a client that trusts its loopback certificate."""

    client: httpx.Client
    log: Path
    status: Path

    def post(self, site: SitePaths, body: bytes = b"x") -> httpx.Response:
        """One Fleet request of the site's node."""
        return self.client.post(PULL, content=body, headers=node_header(site))


@contextlib.contextmanager
def forwarder(
    folder: Path, site: SitePaths, address: str, proxy: str | None = None
) -> Iterator[Running]:
    """Start the forwarder as the link does."""
    state = folder / "state" / "link"
    state.mkdir(parents=True)
    certificate, key = write_loopback_certificate(state)
    settings = {
        "name": site.site,
        "state": str(folder / "state"),
        "aggregator": {
            "address": address,
            "ca_certificate": str(site.ca),
            "signing_key": str(site.study_public),
            "client_certificate": str(site.client.pair),
            **({"proxy": proxy} if proxy else {}),
        },
        "link": {"node_key": str(site.node_key)},
        "data": {"train": ["rows.jsonl"]},
        "trainer": {"signing_key": str(site.signing_key)},
    }
    toml, port = folder / "site.toml", free_port()
    toml.write_text(tomli_w.dumps(settings))
    command = [sys.executable, "-m", "hospital_node.link.forwarder", "--site", str(toml)]
    command += ["--port", str(port), "--certificate", str(certificate), "--key", str(key)]
    log = folder / "forwarder.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    context = ssl.create_default_context(cafile=str(certificate))
    client = httpx.Client(
        base_url=f"https://127.0.0.1:{port}", verify=context, timeout=20, trust_env=False
    )
    try:
        wait_until(lambda: "forwarding to" in log.read_text(), 20, log)
        yield Running(client, log, state / "forwarder.json")
    finally:
        client.close()
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def proxy_server(password: str = "") -> Iterator[Proxy]:
    """Serve CONNECT until the end of the block."""
    listener = socket.create_server(("127.0.0.1", 0))
    record = Proxy(listener.getsockname()[1], password)

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                record.carried += len(data)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        record.asked.append(head.decode())
        if password and f"Proxy-Authorization: Basic {password}" not in head.decode():
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            client.close()
            return
        host, port = head.split()[1].decode().rsplit(":", 1)
        upstream = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        _thread(copy, client, upstream)
        _thread(copy, upstream, client)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                _thread(serve, listener.accept()[0])

    _thread(accept)
    try:
        yield record
    finally:
        listener.close()


def _thread(target: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()


def test_a_request_arrives_with_the_sites_certificate(
    fresh_edge: tuple[Edge, Origin], tmp_path: Path
) -> None:
    edge, origin = fresh_edge
    site = edge.paths.sites["hospital-a"]
    with forwarder(tmp_path / "site", site, f"localhost:{edge.port}") as running:
        body = b"x" * (8 << 20)
        assert running.post(site, body).status_code == 200
        assert origin.seen[-1].headers["x-fedward-site"] == "hospital-a"
        assert origin.seen[-1].body_bytes == len(body)
        wait_until(lambda: _counters(running).get("bytes_up", 0) > len(body), 15, running.log)
        assert _counters(running)["bytes_up"] < len(body) * 1.001 + 5000
        assert _counters(running)["trouble"] == ""


def test_a_revoked_site_is_told_so_in_its_own_log(
    fresh_edge: tuple[Edge, Origin], tmp_path: Path
) -> None:
    """And its node gets 503, which it retries: a certificate can be issued anew."""
    edge, origin = fresh_edge
    site = edge.paths.sites["hospital-a"]
    with forwarder(tmp_path / "site", site, f"localhost:{edge.port}") as running:
        assert running.post(site).status_code == 200
        CA.load(edge.paths.ca_folder).revoke("hospital-a")
        edge.publish_trust()
        begin = time.monotonic()
        wait_until(lambda: "was revoked" in _text(running, site), 10, running.log)
        print(f"the site knows after {time.monotonic() - begin:.1f} s")
        arrived = len(origin.seen)
        assert running.post(site).status_code == 503
        assert len(origin.seen) == arrived
        lines = [line for line in running.log.read_text().splitlines() if "was revoked" in line]
        assert len(lines) == 1
        CA.load(edge.paths.ca_folder).issue_client("hospital-a").write(site.client.folder, "client")
        wait_until(lambda: _status(running, site) == 200, 10, running.log)
        wait_until(lambda: "answers again" in running.log.read_text(), 5, running.log)


def test_a_renewed_certificate_is_used_without_a_restart(
    fresh_edge: tuple[Edge, Origin], tmp_path: Path
) -> None:
    edge, _ = fresh_edge
    site = edge.paths.sites["hospital-a"]
    with forwarder(tmp_path / "site", site, f"localhost:{edge.port}") as running:
        assert running.post(site).status_code == 200
        good = site.client.pair.read_bytes()
        put(site.client.pair, good[: len(good) // 2])  # half a renewal is not taken over
        running.client.close()
        with _again(running) as client:
            answer = client.post(PULL, content=b"x", headers=node_header(site))
            assert answer.status_code == 200
        ca = CA.load(edge.paths.ca_folder)
        ca.issue_client("hospital-a").write(site.client.folder, "client")
        with _again(running) as client:
            answer = client.post(PULL, content=b"x", headers=node_header(site))
            assert answer.status_code == 200
        assert "read again" in running.log.read_text()


def test_an_aggregator_that_is_away_is_503_with_a_sentence(edge: Edge, tmp_path: Path) -> None:
    site = edge.paths.sites["hospital-a"]
    with forwarder(tmp_path / "site", site, f"localhost:{free_port()}") as running:
        answer = running.post(site)
        assert answer.status_code == 503
        assert "cannot reach localhost" in answer.text


def test_a_server_of_another_ca_is_not_spoken_to(
    fresh_edge: tuple[Edge, Origin], edge: Edge, tmp_path: Path
) -> None:
    """A site of one federation, in front of another's edge: nothing is sent."""
    other, origin = fresh_edge
    site = edge.paths.sites["hospital-a"]
    with forwarder(tmp_path / "site", site, f"localhost:{other.port}") as running:
        answer = running.post(site)
        assert answer.status_code == 503
        assert "certificate is not acceptable" in answer.text
        assert origin.seen == []


@pytest.mark.parametrize("password", ["", "c2l0ZTpwQHNz"])
def test_it_goes_through_the_sites_proxy(
    edge: Edge, aggregator: Origin, tmp_path: Path, password: str
) -> None:
    site = edge.paths.sites["hospital-a"]
    login = "site:p%40ss@" if password else ""
    with proxy_server(password) as proxy:
        url = f"http://{login}127.0.0.1:{proxy.port}"
        with forwarder(tmp_path / "site", site, f"localhost:{edge.port}", url) as running:
            body = b"x" * (1 << 20)
            assert running.post(site, body).status_code == 200
        assert proxy.asked[0].startswith(f"CONNECT localhost:{edge.port} HTTP/1.1\r\n")
        assert proxy.carried > len(body)


def test_a_proxy_that_refuses_is_named(edge: Edge, tmp_path: Path) -> None:
    site = edge.paths.sites["hospital-a"]
    with proxy_server("other") as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        with forwarder(tmp_path / "site", site, f"localhost:{edge.port}", url) as running:
            answer = running.post(site)
            assert answer.status_code == 503
            assert "407 Proxy Authentication Required" in answer.text


@pytest.mark.parametrize("proxy", ["proxy:3128", "https://proxy:3128", "http://", "http://a b"])
def test_a_proxy_that_is_not_a_url_is_refused(proxy: str) -> None:
    tree = {
        "address": "edge:8443",
        "ca_certificate": "ca.crt",
        "signing_key": "key.pub",
        "client_certificate": "client.pem",
    }
    with pytest.raises(SettingsError, match="proxy"):
        parse({**tree, "proxy": proxy}, AggregatorSettings, source="site.toml")


def test_a_proxy_needs_a_certificate_to_carry() -> None:
    tree = {"address": "edge:8443", "ca_certificate": "ca.crt", "signing_key": "key.pub"}
    with pytest.raises(SettingsError, match="without client_certificate"):
        parse({**tree, "proxy": "http://proxy:3128"}, AggregatorSettings, source="site.toml")


def _counters(running: Running) -> dict[str, float]:
    if not running.status.exists():
        return {}
    found: dict[str, float] = json.loads(running.status.read_text())
    return found


def _text(running: Running, site: SitePaths) -> str:
    with contextlib.suppress(httpx.TransportError):
        return running.post(site).text
    return ""


def _status(running: Running, site: SitePaths) -> int:
    with contextlib.suppress(httpx.TransportError):
        return running.post(site).status_code
    return 0


def _again(running: Running) -> httpx.Client:
    """A client with connections of its own."""
    context = ssl.create_default_context(cafile=str(running.status.parent / "runtime.crt"))
    return httpx.Client(
        base_url=running.client.base_url, verify=context, timeout=20, trust_env=False
    )
