"""Certificates, lists and hospitals change while the edge runs, and no connection is dropped."""

import signal
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from edge_lab import Edge, Origin, node_header, put, registry_of, wait_until

from certs import CA, Leaf
from certs.local import ClientPaths, make_federation

PUSH = "/v1/fleet/push-object"
PULL = "/v1/fleet/pull-messages"
REVOCATION_SECONDS = 10.0


def test_a_new_server_certificate_is_seen_while_an_upload_goes_on(
    fresh_edge: tuple[Edge, Origin],
) -> None:
    """Nothing is dropped: a slow upload that began before, and a request every 20 ms beside it."""
    edge, origin = fresh_edge
    site = edge.paths.sites["hospital-a"]
    before = _serial(edge)
    upload = _SlowUpload(edge, site.client, node_header(site), seconds=6)
    upload.start()
    polls = _Polls(edge, site.client, node_header(site))
    polls.start()
    time.sleep(1)
    leaf = CA.load(edge.paths.ca_folder).issue_server(["localhost", "127.0.0.1"])
    _give_server(edge, leaf)
    taken = wait_until(lambda: _serial(edge) == leaf.serial, REVOCATION_SECONDS, edge.log)
    assert before != leaf.serial
    upload.join()
    polls.stop()
    assert upload.answer.startswith(b"HTTP/1.1 200"), upload.answer
    assert upload.size in {seen.body_bytes for seen in origin.seen}
    assert polls.failed == []
    assert polls.answered > 50
    print(f"new serial on the wire after {taken:.1f} s, {polls.answered} requests, 0 failed")


def test_a_change_of_ca_drops_nobody(fresh_edge: tuple[Edge, Origin]) -> None:
    """Old and new root are trusted together, then the new one alone."""
    edge, origin = fresh_edge
    old_client = edge.paths.sites["hospital-a"].client
    old_bytes = old_client.pair.read_bytes()
    polls = _Polls(edge, edge.paths.sites["hospital-b"].client)
    polls.start()
    ca = CA.load(edge.paths.ca_folder)
    ca.begin_rollover()
    edge.publish()
    make_federation(edge.paths.folder, ["hospital-a", "hospital-b"])
    new = ca.issue_client("hospital-a")
    folder = edge.folder / "new"
    folder.mkdir()
    new.write(folder, "client")
    new_client = ClientPaths(folder, folder, folder, folder / "client.pem", edge.paths.ca)
    wait_until(lambda: _accepted(edge, new_client), REVOCATION_SECONDS, edge.log)
    (folder / "old.pem").write_bytes(old_bytes)
    old = ClientPaths(folder, folder, folder, folder / "old.pem", edge.paths.ca)
    assert _accepted(edge, old)
    # Servers move to the new root before anybody stops trusting the old.
    _give_server(edge, ca.issue_server(["localhost", "127.0.0.1"]))
    origin.context.load_cert_chain(edge.paths.aggregator.pair)
    time.sleep(2)
    ca.finish_rollover(force=True)
    edge.publish_trust()
    wait_until(lambda: not _accepted(edge, old), REVOCATION_SECONDS, edge.log)
    assert _accepted(edge, new_client)
    polls.stop()
    assert polls.failed == []


def test_a_revoked_hospital_is_refused_within_seconds(fresh_edge: tuple[Edge, Origin]) -> None:
    """On a new connection by the handshake, and on one that was open by its next request."""
    edge, origin = fresh_edge
    site = edge.paths.sites["hospital-a"]
    connection = edge.connect(site.client)
    header = node_header(site)
    connection.request("POST", PULL, b"x", header)
    assert connection.getresponse().read() == b"1"
    others = edge.paths.sites["hospital-b"]
    other = _Polls(edge, others.client, node_header(others))
    other.start()

    CA.load(edge.paths.ca_folder).revoke("hospital-a")
    edge.publish_trust()
    seconds = wait_until(lambda: not _accepted(edge, site.client), REVOCATION_SECONDS, edge.log)
    wait_until(lambda: "CERTIFICATE_REVOKED" in _alert(edge, site.client), REVOCATION_SECONDS)
    before = _from(origin, "hospital-a")
    connection.request("POST", PULL, b"x", header)
    with pytest.raises((ConnectionError, ssl.SSLError)):
        connection.getresponse()
    assert _from(origin, "hospital-a") == before
    other.stop()
    assert other.failed == []
    print(f"refused after {seconds:.1f} s")


def test_a_revocation_survives_a_reload_and_a_session_is_not_resumed(
    fresh_edge: tuple[Edge, Origin],
) -> None:
    edge, _ = fresh_edge
    client = edge.paths.sites["hospital-a"].client
    context = ssl.create_default_context(cafile=str(edge.paths.ca))
    context.load_cert_chain(client.pair)
    with _tls(edge, context) as stream:
        stream.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert stream.recv(100).startswith(b"HTTP/1.1 200")
        session = stream.session
    CA.load(edge.paths.ca_folder).revoke("hospital-a")
    edge.publish_trust()
    wait_until(lambda: not _accepted(edge, client), REVOCATION_SECONDS, edge.log)
    assert not _answers(edge, context, session)

    edge.process.send_signal(signal.SIGHUP)
    time.sleep(2.5)
    assert not _accepted(edge, client)
    assert _accepted(edge, edge.paths.sites["hospital-b"].client)


def test_a_hospital_that_is_enrolled_later_is_let_in(fresh_edge: tuple[Edge, Origin]) -> None:
    edge, _ = fresh_edge
    own = make_federation(edge.paths.folder, ["hospital-a", "hospital-b", "hospital-c"])
    site = own.sites["hospital-c"]
    edge.publish_trust()

    def status() -> int:
        answer = edge.ask(site.client, "POST", PUSH, body=b"x", headers=node_header(site))
        return answer.status

    assert status() == 401
    put(edge.certs / "registry.json", registry_of(own).encode())
    wait_until(lambda: status() == 200, REVOCATION_SECONDS, edge.log)


@pytest.mark.parametrize("name", ["server.pem", "ca.crt", "crl.pem", "registry.json"])
def test_a_damaged_file_changes_nothing_and_is_told_once(
    fresh_edge: tuple[Edge, Origin], name: str
) -> None:
    edge, _ = fresh_edge
    site = edge.paths.sites["hospital-a"]
    good = (edge.certs / name).read_bytes()
    put(edge.certs / name, good[: len(good) // 2])
    wait_until(lambda: _told(edge.log, name), REVOCATION_SECONDS, edge.log)
    time.sleep(2)
    answer = edge.ask(site.client, "POST", PUSH, body=b"x", headers=node_header(site))
    assert answer.status == 200
    assert edge.log.read_text().count("not taken over") == 1
    put(edge.certs / name, good)
    time.sleep(2)
    assert _accepted(edge, site.client)


class _SlowUpload(threading.Thread):
    """4 MiB over a few seconds, as on a slow uplink."""

    size = 4 << 20

    def __init__(
        self, edge: Edge, client: ClientPaths, header: dict[str, str], seconds: float
    ) -> None:
        super().__init__(daemon=True)
        self._edge, self._client, self._header, self._seconds = edge, client, header, seconds
        self.answer = b""

    def run(self) -> None:
        context = ssl.create_default_context(cafile=str(self._edge.paths.ca))
        context.load_cert_chain(self._client.pair)
        lines = [f"{name}: {value}" for name, value in self._header.items()]
        head = [f"POST {PUSH} HTTP/1.1", "host: localhost", f"content-length: {self.size}"]
        with _tls(self._edge, context) as stream:
            stream.sendall("\r\n".join([*head, *lines, "", ""]).encode())
            for _ in range(32):
                stream.sendall(b"x" * (self.size // 32))
                time.sleep(self._seconds / 32)
            self.answer = stream.recv(4096)


class _Polls(threading.Thread):
    """Asks on one connection, and on a new one each second, until stopped."""

    def __init__(
        self, edge: Edge, client: ClientPaths, header: dict[str, str] | None = None
    ) -> None:
        super().__init__(daemon=True)
        self._edge, self._client, self._header = edge, client, header
        self._end = threading.Event()
        self.answered = 0
        self.failed: list[str] = []

    def run(self) -> None:
        connection = self._edge.connect(self._client)
        until = time.monotonic() + 1
        while not self._end.wait(0.02):
            try:
                if time.monotonic() > until:
                    connection.close()
                    connection, until = self._edge.connect(self._client), time.monotonic() + 1
                if self._header is None:
                    connection.request("GET", "/health")
                else:
                    connection.request("POST", PULL, b"x", self._header)
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    self.failed.append(str(response.status))
                self.answered += 1
            except (OSError, ssl.SSLError) as error:
                self.failed.append(repr(error))
                connection.close()
        connection.close()

    def stop(self) -> None:
        """End and wait."""
        self._end.set()
        self.join()


def _give_server(edge: Edge, leaf: Leaf) -> None:
    folder = edge.folder / "leaf"
    folder.mkdir(exist_ok=True)
    leaf.write(folder, "server")
    put(edge.certs / "server.pem", (folder / "server.pem").read_bytes())


def _alert(edge: Edge, client: ClientPaths) -> str:
    """What the handshake ends with when a client is refused."""
    try:
        edge.ask(client, "GET", "/health")
    except (OSError, ssl.SSLError) as error:
        return str(error)
    return ""


def _from(origin: Origin, site: str) -> int:
    return sum(seen.headers["x-fedward-site"] == site for seen in origin.seen)


def _accepted(edge: Edge, client: ClientPaths) -> bool:
    try:
        return edge.ask(client, "GET", "/health").status == 200
    except (OSError, ssl.SSLError):
        return False


def _serial(edge: Edge) -> str:
    context = ssl.create_default_context(cafile=str(edge.paths.ca))
    context.load_cert_chain(edge.paths.operator.pair)
    with _tls(edge, context) as stream:
        found = stream.getpeercert()
    assert found is not None
    return f"{int(str(found['serialNumber']), 16):x}"


def _tls(
    edge: Edge, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> ssl.SSLSocket:
    plain = socket.create_connection(("localhost", edge.port), timeout=20)
    return context.wrap_socket(plain, server_hostname="localhost", session=session)


def _answers(edge: Edge, context: ssl.SSLContext, session: ssl.SSLSession | None) -> bool:
    try:
        with _tls(edge, context, session) as stream:
            stream.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            return bool(stream.recv(100))
    except (OSError, ssl.SSLError):
        return False


def _told(log: Path, name: str) -> bool:
    return any(name in line and "not taken" in line for line in log.read_text().splitlines())
