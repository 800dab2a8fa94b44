"""A local federation's keys (made once), and an aggregator.toml on free ports."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from certs.local import FederationPaths, make_federation
from protocol.registry import EnrolledSite, Registry

SITES = ("hospital-a", "hospital-b", "hospital-c")

WriteAggregator = Callable[..., Path]


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> FederationPaths:
    """Certificates, node keys and signing keys of three hospitals."""
    return make_federation(tmp_path_factory.mktemp("federation"), SITES)


@pytest.fixture(scope="session")
def registry(federation: FederationPaths) -> Path:
    """The list of the three enrolled hospitals."""
    path = federation.folder / "test-registry.json"
    sites = {
        name: EnrolledSite(
            node_public_key=site.node_public.read_text(),
            signing_public_key=site.signing_public.read_text(),
        )
        for name, site in federation.sites.items()
    }
    path.write_text(Registry(sites=sites).model_dump_json())
    return path


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Gives loopback ports nobody listens on."""

    def pick() -> int:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port: int = sock.getsockname()[1]
            return port

    return pick


@pytest.fixture(scope="session")
def write_aggregator(
    federation: FederationPaths, registry: Path, free_port: Callable[[], int]
) -> WriteAggregator:
    """Write a valid aggregator.toml in a folder; keywords override one value each."""

    def write(folder: Path, **override: object) -> Path:
        token = folder / "aggregator.token"
        token.write_text("t" * 64)
        token.chmod(0o600)
        values: dict[str, object] = {
            "registry": registry,
            "fleet_port": free_port(),
            "private_port": free_port(),
            "certificate": federation.aggregator.cert,
            "key": federation.aggregator.key,
            "control_plane": f"https://127.0.0.1:{free_port()}",
        } | override
        path = folder / "aggregator.toml"
        path.write_text(
            f"""
            registry = "{values["registry"]}"
            signing_key = "{federation.study_signing_key}"
            [fleet]
            host = "127.0.0.1"
            port = {values["fleet_port"]}
            [private]
            host = "127.0.0.1"
            port = {values["private_port"]}
            [tls]
            certificate = "{values["certificate"]}"
            key = "{values["key"]}"
            ca = "{federation.ca}"
            [control_plane]
            url = "{values["control_plane"]}"
            ca = "{federation.ca}"
            token = "{token.name}"
            """
        )
        return path

    return write
