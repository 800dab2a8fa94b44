"""What the edge lets through, to whom, and with which names on it."""

import datetime as dt
import socket
import ssl
import threading
import time

import httpx
import pytest
from edge_lab import Edge, Origin, node_header

from certs import CA
from certs.local import ClientPaths, FederationPaths
from protocol.control import SITE_PROGRESS
from protocol.flower import FLEET_ROUTES, MAX_FLEET_BODY_BYTES

PULL = "/v1/fleet/pull-messages"


@pytest.fixture
def client(edge: Edge, paths: FederationPaths) -> ClientPaths:
    """Hospital A."""
    return paths.sites["hospital-a"].client


@pytest.fixture
def header(paths: FederationPaths) -> dict[str, str]:
    """Hospital A's node key."""
    return node_header(paths.sites["hospital-a"])


def test_every_fleet_route_reaches_the_aggregator(
    edge: Edge, aggregator: Origin, client: ClientPaths, header: dict[str, str]
) -> None:
    for route in FLEET_ROUTES:
        path = f"/v1/fleet/{route}"
        assert edge.ask(client, "POST", path, body=b"x", headers=header).status == 200
        assert aggregator.seen[-1].path == path


def test_a_progress_report_reaches_the_control_plane(
    edge: Edge, control_plane: Origin, client: ClientPaths
) -> None:
    assert edge.ask(client, "POST", SITE_PROGRESS, body=b"x").status == 200
    assert control_plane.seen[-1].path == SITE_PROGRESS
    assert control_plane.seen[-1].headers["x-fedward-site"] == "hospital-a"


def test_health_says_that_the_aggregator_is_up(edge: Edge, client: ClientPaths) -> None:
    assert edge.ask(client, "GET", "/health").status == 200


def test_plain_http_gets_no_answer(edge: Edge) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://localhost:{edge.port}/health")


def test_no_client_certificate_is_refused_in_the_handshake(edge: Edge) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        edge.ask(None, "GET", "/health")


def test_another_ca_is_refused_in_the_handshake(
    edge: Edge, paths: FederationPaths, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("other")
    CA.create().issue_client("hospital-a").write(folder, "client")
    stranger = ClientPaths(folder, folder, folder, folder / "client.pem", paths.ca)
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        edge.ask(stranger, "GET", "/health")


def test_a_servers_certificate_is_not_a_clients(edge: Edge, paths: FederationPaths) -> None:
    server = paths.aggregator
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_CERTIFICATE"):
        edge.ask(
            ClientPaths(server.folder, server.cert, server.key, server.pair, paths.ca),
            "GET",
            "/health",
        )


def test_an_expired_certificate_is_refused(
    edge: Edge, paths: FederationPaths, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("expired")
    ca = CA.load(paths.ca_folder)
    ca.issue_client("hospital-a", lifetime=dt.timedelta(seconds=1)).write(folder, "client")
    time.sleep(2.1)
    old = ClientPaths(folder, folder, folder, folder / "client.pem", paths.ca)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_EXPIRED"):
        edge.ask(old, "GET", "/health")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_versions_of_tls_are_refused(
    edge: Edge, client: ClientPaths, version: ssl.TLSVersion
) -> None:
    context = ssl.create_default_context(cafile=str(edge.paths.ca))
    context.load_cert_chain(client.pair)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = version
    with (
        socket.create_connection(("localhost", edge.port)) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(plain, server_hostname="localhost")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/openapi.json",
        "/metrics",
        "/v1/fleet/",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/Pull-Messages",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/pull%2dmessages",
        "//v1/fleet/pull-messages",
        "/v1/fleet//pull-messages",
        "/v1/fleet/pull-messages;x",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/site/",
        "/v1/site/../../api/v1/studies",
        "/api/v1/studies",
    ],
)
def test_a_hospital_finds_nothing_else(
    edge: Edge, aggregator: Origin, client: ClientPaths, header: dict[str, str], path: str
) -> None:
    before = len(aggregator.seen)
    assert edge.ask(client, "POST", path, body=b"x", headers=header).status == 404
    assert len(aggregator.seen) == before


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT-"])
def test_only_post_is_passed_on(
    edge: Edge, client: ClientPaths, header: dict[str, str], method: str
) -> None:
    assert edge.ask(client, method, PULL, headers=header).status == 405


def test_the_control_api_is_open_to_the_coordinators_certificate_alone(
    edge: Edge, paths: FederationPaths, private: Origin, client: ClientPaths
) -> None:
    path = "/v1/control/start-run"
    assert edge.ask(paths.coordinator, "POST", path, body=b"x").status == 200
    assert len(private.seen) == 1
    assert edge.ask(paths.operator, "POST", path, body=b"x").status == 404
    assert edge.ask(client, "POST", path, body=b"x").status == 404
    assert len(private.seen) == 1


def test_the_runtime_api_is_open_to_nobody(edge: Edge, paths: FederationPaths) -> None:
    for client in (paths.coordinator, paths.operator, paths.sites["hospital-a"].client):
        assert edge.ask(client, "POST", "/v1/runtime/acquire-task", body=b"x").status == 404


def test_the_coordinator_is_no_hospital(
    edge: Edge, paths: FederationPaths, header: dict[str, str]
) -> None:
    assert edge.ask(paths.coordinator, "POST", PULL, body=b"x", headers=header).status == 404


def test_a_hospital_named_coordinator_is_still_a_hospital(
    edge: Edge, paths: FederationPaths, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sly")
    CA.load(paths.ca_folder).issue_client("coordinator").write(folder, "client")
    sly = ClientPaths(folder, folder, folder, folder / "client.pem", paths.ca)
    assert edge.ask(sly, "POST", "/v1/control/start-run", body=b"x").status == 404


def test_another_hospitals_node_key_is_refused(edge: Edge, paths: FederationPaths) -> None:
    """Hospital A's certificate with hospital B's key: 401, as for a key that is not enrolled."""
    client = paths.sites["hospital-a"].client
    theirs = node_header(paths.sites["hospital-b"])
    assert edge.ask(client, "POST", PULL, body=b"x", headers=theirs).status == 401
    assert edge.ask(client, "POST", PULL, body=b"x").status == 401
    twice = {"flwr-public-key": f"{theirs['flwr-public-key']},x"}
    assert edge.ask(client, "POST", PULL, body=b"x", headers=twice).status == 401


def test_a_forged_name_is_replaced(
    edge: Edge, aggregator: Origin, client: ClientPaths, header: dict[str, str]
) -> None:
    forged = {
        **header,
        "X-Fedward-Site": "hospital-b",
        "x-fedward-role": "coordinator",
        "X-Fedward-Anything": "x",
        "X-Forwarded-For": "127.0.0.1",
        "Forwarded": "for=127.0.0.1",
    }
    assert edge.ask(client, "POST", PULL, body=b"x", headers=forged).status == 200
    got = aggregator.seen[-1].headers
    assert got["x-fedward-site"] == "hospital-a"
    assert got["x-fedward-role"] == "hospital"
    assert not {"x-fedward-anything", "x-forwarded-for", "forwarded"} & set(got)


def test_a_body_of_16_mib_passes_and_one_of_20_mb_does_not(
    edge: Edge, aggregator: Origin, client: ClientPaths, header: dict[str, str]
) -> None:
    path = "/v1/fleet/push-object"
    largest = b"x" * MAX_FLEET_BODY_BYTES
    with _httpx(edge, client) as session:
        assert session.post(path, content=largest, headers=header).status_code == 200
        assert aggregator.seen[-1].body_bytes == MAX_FLEET_BODY_BYTES
        before = len(aggregator.seen)
        assert session.post(path, content=b"x" * 20_000_000, headers=header).status_code == 413
    assert len(aggregator.seen) == before


def test_a_body_without_a_length_does_not_pass(
    edge: Edge, aggregator: Origin, client: ClientPaths, header: dict[str, str]
) -> None:
    """20 MB in chunks: not one of them reaches the aggregator. Flower never sends this way."""
    before = len(aggregator.seen)
    chunks = (b"x" * 1_000_000 for _ in range(20))
    with _httpx(edge, client) as session:
        answer = session.post("/v1/fleet/push-object", content=chunks, headers=header)
    assert answer.status_code == 411
    assert len(aggregator.seen) == before


def test_a_report_of_more_than_64_kib_does_not_pass(edge: Edge, client: ClientPaths) -> None:
    with _httpx(edge, client) as session:
        assert session.post(SITE_PROGRESS, content=b"x" * 65_536).status_code == 200
        assert session.post(SITE_PROGRESS, content=b"x" * 65_537).status_code == 413


def test_two_lengths_are_refused(
    edge: Edge, aggregator: Origin, client: ClientPaths, header: dict[str, str]
) -> None:
    """The first half of request smuggling."""
    before = len(aggregator.seen)
    lines = [f"POST {PULL} HTTP/1.1", "host: localhost", *(f"{k}: {v}" for k, v in header.items())]
    for extra in (
        ["content-length: 1", "content-length: 5"],
        ["content-length: 5", "transfer-encoding: chunked"],
        ["content-length: 5", "transfer-encoding : chunked"],
    ):
        request = "\r\n".join([*lines, *extra, "", ""]) + "0\r\n\r\n"
        assert b" 4" in _raw(edge, client, request.encode())[:14]
    assert len(aggregator.seen) == before


def test_a_flood_is_told_to_try_again_later(edge: Edge, paths: FederationPaths) -> None:
    """503, which a SuperNode retries; and only for the site that floods."""
    count = 5200
    request = b"GET /nothing HTTP/1.1\r\nhost: localhost\r\n\r\n"
    last = b"GET /nothing HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    client = paths.sites["hospital-b"].client
    answers = _raw(edge, client, request * count + last)
    assert answers.count(b"HTTP/1.1 404 ") + answers.count(b"HTTP/1.1 503 ") == count + 1
    assert answers.count(b"HTTP/1.1 503 ") >= count - 5000
    assert edge.ask(client, "GET", "/health").status == 503
    assert edge.ask(paths.sites["hospital-a"].client, "GET", "/health").status == 200


def test_bytes_are_counted_for_each_certificate(
    edge: Edge, paths: FederationPaths, client: ClientPaths, header: dict[str, str]
) -> None:
    before = _received(edge, paths)
    body = b"x" * 5_000_000
    assert edge.ask(client, "POST", PULL, body=body, headers=header).status == 200
    counted = _received(edge, paths)["hospital-a"] - before.get("hospital-a", 0)
    assert len(body) <= counted <= len(body) * 1.001 + 1000


def test_metrics_are_for_those_who_may_read(edge: Edge, paths: FederationPaths) -> None:
    port = edge.metrics_port
    for path in ("/metrics", "/metrics/sites"):
        assert edge.ask(paths.operator, "GET", path, port=port).status == 200
        hospital = paths.sites["hospital-a"].client
        assert edge.ask(hospital, "GET", path, port=port).status == 404
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        edge.ask(None, "GET", "/metrics", port=port)


def _received(edge: Edge, paths: FederationPaths) -> dict[str, int]:
    answer = edge.ask(paths.operator, "GET", "/metrics/sites", port=edge.metrics_port)
    name = 'fedward_edge_site_received_bytes_total{site="'
    lines = [
        line
        for line in answer.text.splitlines()
        if line.startswith(name)  # type: ignore[attr-defined]
    ]
    return {line.split('"')[1]: int(line.split()[1]) for line in lines}


def _httpx(edge: Edge, client: ClientPaths) -> httpx.Client:
    """The client that Flower uses."""
    context = ssl.create_default_context(cafile=str(edge.paths.ca))
    context.load_cert_chain(client.pair)
    return httpx.Client(base_url=f"https://localhost:{edge.port}", verify=context, timeout=20)


def _raw(edge: Edge, client: ClientPaths, request: bytes) -> bytes:
    context = ssl.create_default_context(cafile=str(edge.paths.ca))
    context.load_cert_chain(client.pair)
    with (
        socket.create_connection(("localhost", edge.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as stream,
    ):
        stream.settimeout(15)
        sender = threading.Thread(target=stream.sendall, args=(request,))
        sender.start()
        parts = []
        while part := stream.recv(65536):
            parts.append(part)
        sender.join()
    return b"".join(parts)
