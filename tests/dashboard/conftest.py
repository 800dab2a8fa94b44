"""One running control plane for a module's tests."""

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
