"""A real HAProxy with real certificates, in front of a server that remembers what reached it."""

import contextlib
import http.server
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPResponse, HTTPSConnection
from pathlib import Path

from certs.local import ClientPaths, FederationPaths, SitePaths

DOCKER_EDGE = Path(__file__).parents[2] / "docker" / "edge"


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Seen:
    """One request that got through the edge."""

    method: str
    path: str
    headers: dict[str, str]
    body_bytes: int


@dataclass
class Origin:
    """Stands in for the aggregator and for the control plane; `seen` is what reached it."""

    port: int
    context: ssl.SSLContext
    seen: list[Seen] = field(default_factory=list)


@contextlib.contextmanager
def origin(paths: FederationPaths) -> Iterator[Origin]:
    """An HTTPS server with the aggregator's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paths.aggregator.pair)
    record = Origin(0, context)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(b"ok")

        def do_POST(self) -> None:
            left = int(self.headers["content-length"])
            count = 0
            while left and (part := self.rfile.read1(min(65536, left))):
                left -= len(part)
                count += len(part)
            headers = {name.lower(): value for name, value in self.headers.items()}
            record.seen.append(Seen(self.command, self.path, headers, count))
            self._answer(str(count).encode())

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.send_header("connection", "keep-alive")
            self._headers_buffer.append(b"\r\n" + body)  # one packet, so that nobody waits
            self.flush_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # closed connections
    server.socket = context.wrap_socket(server.socket, server_side=True)
    record.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield record
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Edge:
    """A running edge and the files it follows."""

    port: int
    metrics_port: int
    folder: Path
    paths: FederationPaths
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def certs(self) -> Path:
        return self.folder / "certs"

    def publish(self) -> None:
        """Give the edge the CA's and the aggregator's present files, as an init job does."""
        put(self.certs / "server.pem", self.paths.aggregator.pair.read_bytes())
        self.publish_trust()

    def publish_trust(self) -> None:
        """Give the edge the present roots and revocation list."""
        put(self.certs / "ca.crt", self.paths.ca.read_bytes())
        put(self.certs / "crl.pem", self.paths.crl.read_bytes())

    def connect(self, client: ClientPaths | None, port: int = 0) -> HTTPSConnection:
        """A connection with `client`'s certificate."""
        context = ssl.create_default_context(cafile=str(self.paths.ca))
        if client is not None:
            context.load_cert_chain(client.pair)
        return HTTPSConnection("localhost", port or self.port, context=context, timeout=20)

    def ask(
        self,
        client: ClientPaths | None,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        port: int = 0,
    ) -> HTTPResponse:
        """One request on a connection of its own; the body is read."""
        connection = self.connect(client, port)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            response.text = response.read().decode()  # type: ignore[attr-defined]
            return response
        finally:
            connection.close()


@contextlib.contextmanager
def running_edge(
    folder: Path,
    paths: FederationPaths,
    aggregator: int,
    control_plane: int,
    private: int = 0,
    **settings: str,
) -> Iterator[Edge]:
    """Start the edge as its image does, and wait until the aggregator is up behind it."""
    folder.mkdir()
    (folder / "certs").mkdir()
    edge = Edge(free_port(), free_port(), folder, paths, None, folder / "log")  # type: ignore[arg-type]
    edge.publish()
    put(edge.certs / "registry.json", registry_of(paths).encode())
    environment = {
        **os.environ,
        "EDGE_LISTEN": f"127.0.0.1:{edge.port}",
        "EDGE_METRICS_LISTEN": f"127.0.0.1:{edge.metrics_port}",
        "EDGE_TABLES": str(DOCKER_EDGE),
        "EDGE_CONFIG": str(DOCKER_EDGE / "haproxy.cfg"),
        "EDGE_CERTS": str(edge.certs),
        "EDGE_RUN": str(folder / "run"),
        "EDGE_AGGREGATOR": f"127.0.0.1:{aggregator}",
        "EDGE_AGGREGATOR_NAME": "localhost",
        "EDGE_CONTROL_PLANE": f"127.0.0.1:{control_plane}",
        "EDGE_CONTROL_PLANE_NAME": "localhost",
        "PYTHONPATH": str(DOCKER_EDGE),
        **settings,
    }
    if private:
        environment |= {"EDGE_PRIVATE": f"127.0.0.1:{private}", "EDGE_PRIVATE_NAME": "localhost"}
    with edge.log.open("wb") as log:
        edge.process = subprocess.Popen(
            [sys.executable, "-m", "fedward_edge"], env=environment, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: edge_is_up(edge, environment), 15, edge.log)
        yield edge
    finally:
        edge.process.terminate()
        try:
            edge.process.wait(40)
        except subprocess.TimeoutExpired:
            edge.process.kill()


def edge_is_up(edge: Edge, environment: Mapping[str, str]) -> bool:
    """The image's own health check."""
    check = [sys.executable, "-m", "fedward_edge", "health"]
    return subprocess.run(check, env=environment, capture_output=True).returncode == 0


def wait_until(check: object, seconds: float, log: Path | None = None) -> float:
    """Wait for `check()`; how long it took."""
    begin = time.monotonic()
    while not check():  # type: ignore[operator]
        if time.monotonic() - begin > seconds:
            raise AssertionError(f"not within {seconds} s\n{log.read_text() if log else ''}")
        time.sleep(0.05)
    return time.monotonic() - begin


def registry_of(paths: FederationPaths) -> str:
    """The registry that enrolment wrote."""
    return paths.sites_file.read_text()


def node_header(site: SitePaths) -> dict[str, str]:
    """The header by which Flower names a node: its own function makes it."""
    from base64 import b64encode

    from cryptography.hazmat.primitives.serialization import load_ssh_public_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    key = load_ssh_public_key(site.node_public.read_bytes())
    return {"flwr-public-key": b64encode(public_key_to_bytes(key)).decode()}  # type: ignore[arg-type]


def put(path: Path, data: bytes) -> None:
    """Replace a file in one step."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(data)
    temporary.replace(path)
