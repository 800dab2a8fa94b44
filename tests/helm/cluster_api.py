"""An API server that keeps Secrets and ConfigMaps in memory: what the certs Job needs of one."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeCluster:
    """Objects by kind and name, with versions as the real one has them."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.version = 0
        self.writes: list[tuple[str, str, str]] = []
        self.conflicts = 0  # so many updates are answered with 409
        self.fail_on: str = ""  # a name whose writing fails
        self.url = ""
        self.readable: set[tuple[str, str]] | None = None  # None: every object

    def put(self, method: str, kind: str, name: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Make or change."""
        there = self.objects.get((kind, name))
        if name == self.fail_on:
            return 500, {"message": "the disk is full"}
        if self.conflicts and method == "PUT":
            self.conflicts -= 1
            return 409, {}
        if (method == "POST") == (there is not None):
            return 409, {}
        if (
            there
            and body["metadata"].get("resourceVersion") != there["metadata"]["resourceVersion"]
        ):
            return 409, {}
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.objects[kind, name] = body
        self.writes.append((method, kind, name))
        return (201 if method == "POST" else 200), body


@contextmanager
def fake_cluster() -> Iterator[FakeCluster]:
    """Serve one on loopback."""
    cluster = FakeCluster()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self, status: int, body: Any) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _where(self) -> tuple[str, str]:
            kind, _, name = self.path.partition("/namespaces/")[2].partition("/")[2].partition("/")
            return kind, name

        def do_GET(self) -> None:
            where = self._where()
            if cluster.readable is not None and where not in cluster.readable:
                self._answer(403, {"message": f"not in the Role: {where}"})
                return
            found = cluster.objects.get(where)
            self._answer(200 if found else 404, found or {})

        def _write(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            kind, _ = self._where()
            self._answer(*cluster.put(self.command, kind, body["metadata"]["name"], body))

        do_POST = do_PUT = _write

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    cluster.url = f"http://127.0.0.1:{server.server_port}/api/v1/namespaces/centre"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
