"""What every test of the chart shares."""

import os

import pytest


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of small key files are written here; see tests/certs/conftest.py."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
