"""One running control plane for a module's tests."""

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .service import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A control plane of this module's own."""
    made = Service(tmp_path_factory.mktemp("plane"))
    yield made
    made.stop()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Service]:
    """A control plane of this test's own."""
    made = Service(tmp_path)
    yield made
    made.stop()


AXE = "axe-core@4.14.1"  # MPL-2.0; only tests use it, so it is fetched and not kept here


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core's source, or "" where npm cannot fetch it."""
    if shutil.which("npm") is None:
        return ""
    folder = tmp_path_factory.mktemp("axe")
    done = subprocess.run(
        ["npm", "pack", AXE, "--silent"], cwd=folder, capture_output=True, check=False, timeout=120
    )
    found = list(folder.glob("*.tgz"))
    if done.returncode or not found:
        return ""
    with tarfile.open(found[0]) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()
