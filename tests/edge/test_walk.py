"""Every route of a real SuperLink, walked through the edge; and a scan of the edge's TLS."""

import contextlib
import json
import secrets
import shutil
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from edge_lab import Edge, Origin, free_port, node_header, running_edge, wait_until

from certs.local import FederationPaths
from protocol.control import FLEET_PREFIX
from protocol.flower import FLEET_ROUTES, environment, superlink_arguments

pytestmark = pytest.mark.timeout(180)


@contextlib.contextmanager
def superlink(folder: Path, paths: FederationPaths) -> Iterator[int]:
    """Flower's own SuperLink, without our guard: everything it serves is on its one port."""
    folder.mkdir()
    secret, port, log = folder / "secret", free_port(), folder / "log"
    secret.write_text(secrets.token_hex(32))
    arguments = superlink_arguments(
        host="127.0.0.1",
        port=port,
        ca=paths.ca,
        cert=paths.aggregator.cert,
        key=paths.aggregator.key,
        database=folder / "state.db",
        secret=secret,
    )
    command = [str(Path(sys.executable).parent / "flower-superlink"), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment(folder), stdout=output, stderr=output)
    try:
        wait_until(lambda: _direct(paths, port, "/health") is not None, 90, log)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def _direct(paths: FederationPaths, port: int, path: str) -> bytes | None:
    context = ssl.create_default_context(cafile=str(paths.ca))
    with contextlib.suppress(OSError):
        url = f"https://localhost:{port}{path}"
        found: bytes = urllib.request.urlopen(url, context=context, timeout=5).read()
        return found
    return None


@pytest.mark.skipif(not Path("/usr/sbin/haproxy").exists(), reason="no haproxy on this machine")
def test_of_all_routes_of_a_superlink_a_hospital_reaches_the_fleet_routes_alone(
    tmp_path: Path, paths: FederationPaths
) -> None:
    """With the Control API's door open to the coordinator, so that it could be open by mistake."""
    site = paths.sites["hospital-a"]
    with (
        superlink(tmp_path / "superlink", paths) as port,
        running_edge(tmp_path / "edge", paths, port, port, port) as edge,
    ):
        schema = json.loads(_direct(paths, port, "/openapi.json") or b"{}")
        routes = sorted(
            (method, path) for path, found in schema["paths"].items() for method in found
        )
        assert len(routes) > 30
        reached = set()
        for method, path in routes:
            answer = edge.ask(
                site.client, method.upper(), path, body=b"\x00", headers=node_header(site)
            )
            assert answer.status != 403
            if answer.getheader("content-type") != "text/plain":  # the edge's own refusals
                reached.add(path)
        assert reached == {FLEET_PREFIX + route for route in FLEET_ROUTES}
        assert any(path.startswith("/v1/control/") for _, path in routes)
        assert any(path.startswith("/v1/runtime/") for _, path in routes)


# What a scan may find. Anything else is a change that a person has to look at.
SUITES = {
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
}


@pytest.fixture
def patient_edge(tmp_path: Path, paths: FederationPaths, aggregator: Origin) -> Iterator[Edge]:
    """One that bears a scanner's hundreds of connections in a second."""
    if not shutil.which("haproxy"):
        pytest.skip("no haproxy binary on this machine")
    port = aggregator.port
    with running_edge(tmp_path / "edge", paths, port, port, EDGE_CONNECTIONS="100000") as edge:
        yield edge


@pytest.mark.parametrize("listener", ["hospitals", "metrics"])
def test_a_scan_finds_tls_1_2_and_1_3_with_strong_suites_alone(
    patient_edge: Edge, paths: FederationPaths, listener: str, tmp_path: Path
) -> None:
    """sslyze pins an older `cryptography` than we do: it needs an environment of its own, and
    `sslyze` on the PATH (`pipx install sslyze`)."""
    sslyze = shutil.which("sslyze")
    if sslyze is None:
        pytest.skip("no sslyze on the PATH")
    client = paths.sites["hospital-a"].client
    edge, scan_file = patient_edge, tmp_path / "scan.json"
    port = edge.port if listener == "hospitals" else edge.metrics_port
    done = subprocess.run(
        [sslyze, f"--json_out={scan_file}", "--quiet",
         f"--cert={client.cert}", f"--key={client.key}",
         "--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2", "--tlsv1_3", "--heartbleed",
         "--openssl_ccs", "--compression", "--reneg", "--resum", "--resum_attempts=3",
         "--certinfo", "--slow_connection", f"localhost:{port}"],
        capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert scan_file.exists(), done.stdout + done.stderr
    result = json.loads(scan_file.read_text())["server_scan_results"][0]
    assert result["scan_status"] == "COMPLETED", result
    scan = {name: entry["result"] for name, entry in result["scan_result"].items() if entry}

    def accepted(version: str) -> set[str]:
        suites = scan[f"{version}_cipher_suites"]["accepted_cipher_suites"]
        return {entry["cipher_suite"]["name"] for entry in suites}

    for version in ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"):
        assert accepted(version) == set(), version
    for version in ("tls_1_2", "tls_1_3"):
        assert accepted(version), version
        assert accepted(version) <= SUITES, version
    assert scan["heartbleed"]["is_vulnerable_to_heartbleed"] is False
    assert scan["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"] is False
    assert scan["tls_compression"]["supports_compression"] is False
    renegotiation = scan["session_renegotiation"]
    assert renegotiation["is_vulnerable_to_client_renegotiation_dos"] is False
    assert scan["session_resumption"]["session_id_successful_resumptions_count"] == 0
    deployment = scan["certificate_info"]["certificate_deployments"][0]
    assert deployment["received_chain_has_valid_order"] is True
