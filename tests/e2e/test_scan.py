"""Every listening port of a running federation, scanned by sslyze, against an allow-list.

sslyze pins its own cryptography, so it lives in an environment of its own (`pipx install
sslyze==6.3.1`); the test finds the command on the PATH.
"""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedward.federation import Layout

from .conftest import Running

SSLYZE = shutil.which("sslyze")

# What a listener may offer: forward secrecy and authenticated encryption, nothing else.
ALLOWED = {
    "tls_1_2_cipher_suites": {
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    },
    "tls_1_3_cipher_suites": {
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
    },
}
# Flower's own listener inside a hospital's link: loopback only, suites are OpenSSL's default.
ON_LOOPBACK = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA384",
}
CLOSED = ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1")
FLAWS = {
    "heartbleed": "is_vulnerable_to_heartbleed",
    "openssl_ccs_injection": "is_vulnerable_to_ccs_injection",
    "session_renegotiation": "is_vulnerable_to_client_renegotiation_dos",
}

pytestmark = pytest.mark.skipif(
    SSLYZE is None, reason="no sslyze on the PATH: pipx install sslyze==6.3.1"
)


@pytest.mark.timeout(600)
def test_every_port_offers_only_what_is_allowed(up: Callable[..., Running], tmp_path: Path) -> None:
    """TLS 1.2 and 1.3, strong suites, no known flaw, a chain that leads to the root."""
    running = up()
    running.wait(
        "three hospitals are online",
        lambda: [node.status for node in running.plane.nodes()] == ["online"] * 3,
    )
    assert len(links(running)) >= 3
    for name, port in running.federation.ports.items():
        result = scan(port, running, tmp_path / f"{name}.json")
        check(name, result)
        assert leads_to_our_root(result), name
    for port in links(running):
        name = f"a link's own listener, {port}"
        check(name, scan(port, running, tmp_path / f"{port}.json"), more=ON_LOOPBACK)


def check(name: str, result: dict[str, Any], more: Set[str] = frozenset()) -> None:
    """One port against the allow-list."""
    for version in CLOSED:
        assert not accepted(result, f"{version}_cipher_suites"), (name, version)
    for version, allowed in ALLOWED.items():
        offered = accepted(result, version)
        assert offered, (name, version)
        assert offered <= allowed | more, (name, offered - allowed)
    for scanned, field in FLAWS.items():
        assert result[scanned]["result"][field] is False, (name, scanned)
    assert result["tls_compression"]["result"]["supports_compression"] is False, name
    for deployed in result["certificate_info"]["result"]["certificate_deployments"]:
        assert deployed["received_chain_has_valid_order"] is True, name
        assert not deployed["leaf_certificate_has_must_staple_extension"], name
        assert deployed["verified_chain_has_sha1_signature"] is not True, name


def leads_to_our_root(result: dict[str, Any]) -> bool:
    """Whether the chain that was sent is complete up to the CA that the federation trusts."""
    return any(
        judged["trust_store"]["name"] == "Supplied CA file" and judged["verified_certificate_chain"]
        for deployed in result["certificate_info"]["result"]["certificate_deployments"]
        for judged in deployed["path_validation_results"]
    )


def scan(port: int, running: Running, target: Path) -> dict[str, Any]:
    """What sslyze finds at a port, as it writes it to JSON."""
    assert SSLYZE is not None
    roots = Layout(running.folder).certs / "ca" / "trust.pem"
    options = [
        *("--json_out", str(target), "--mozilla_config", "disable", "--slow_connection"),
        *("--certinfo", "--certinfo_ca_file", str(roots)),
        *("--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2", "--tlsv1_3"),
        *("--heartbleed", "--openssl_ccs", "--reneg", "--compression"),
    ]
    subprocess.run(
        [SSLYZE, *options, f"localhost:{port}"],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (found,) = json.loads(target.read_text())["server_scan_results"]
    assert found["scan_status"] == "COMPLETED", found
    result: dict[str, Any] = found["scan_result"]
    return result


def accepted(result: dict[str, Any], version: str) -> set[str]:
    """The names of the suites that were accepted."""
    suites = result[version]["result"]["accepted_cipher_suites"]
    return {suite["cipher_suite"]["name"] for suite in suites}


def links(running: Running) -> list[int]:
    """The ports on which hospitals' links listen, on loopback."""
    ports: set[int] = set()
    for process in running.processes("hospital_node.link"):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            ports |= {
                connection.laddr.port
                for connection in process.net_connections("tcp")
                if connection.status == "LISTEN"
            }
    return sorted(ports)
