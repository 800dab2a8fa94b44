"""What every test of `certs/` shares."""

import os

import pytest


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand small files are written here; syncing each took most of the time, and a test
    cannot see the difference, for that is what is left after the power fails."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
