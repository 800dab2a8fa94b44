"""One federation's certificates and one edge for tests that change nothing; a fresh one for others.

Needs the `haproxy` binary (`apt-get install haproxy`, 2.4 or newer).
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from edge_lab import Edge, Origin, origin, running_edge

from certs.local import FederationPaths, make_federation

SITES = ["hospital-a", "hospital-b"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs HAProxy where there is none."""
    if shutil.which("haproxy"):
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and "edge" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="no haproxy binary on this machine"))


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> FederationPaths:
    """Certificates that no test changes."""
    return make_federation(tmp_path_factory.mktemp("pki"), SITES)


@pytest.fixture(scope="session")
def aggregator(paths: FederationPaths) -> Iterator[Origin]:
    """What stands behind the Fleet routes."""
    with origin(paths) as server:
        yield server


@pytest.fixture(scope="session")
def control_plane(paths: FederationPaths) -> Iterator[Origin]:
    """What stands behind the site routes."""
    with origin(paths) as server:
        yield server


@pytest.fixture(scope="session")
def private(paths: FederationPaths) -> Iterator[Origin]:
    """What stands behind the Control API."""
    with origin(paths) as server:
        yield server


@pytest.fixture(scope="session")
def edge(
    tmp_path_factory: pytest.TempPathFactory,
    paths: FederationPaths,
    aggregator: Origin,
    control_plane: Origin,
    private: Origin,
) -> Iterator[Edge]:
    """An edge whose files nobody changes; its Control API is on."""
    folder = tmp_path_factory.mktemp("edge") / "edge"
    with running_edge(folder, paths, aggregator.port, control_plane.port, private.port) as running:
        yield running


@pytest.fixture
def fresh_edge(tmp_path: Path) -> Iterator[tuple[Edge, Origin]]:
    """An edge with a federation of its own, to rotate and revoke; the Control API is off."""
    if not shutil.which("haproxy"):
        pytest.skip("no haproxy binary on this machine")
    own = make_federation(tmp_path / "pki", SITES)
    with (
        origin(own) as server,
        running_edge(tmp_path / "edge", own, server.port, server.port) as edge,
    ):
        yield edge, server
