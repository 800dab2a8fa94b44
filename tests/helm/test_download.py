"""The Job that fetches a base model: what it asks a hub for, and what it takes from it."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .chart import CHART, ROOT

SCRIPT = CHART / "files" / "download.py"
WEIGHTS = b"safetensors"
HASH = hashlib.sha256(WEIGHTS).hexdigest()
HUB = f"""
from pathlib import Path
def snapshot_download(model, *, revision, local_dir, allow_patterns, token):
    assert not [p for p in allow_patterns if p.endswith((".bin", ".pt", ".py", ".pkl"))]
    with open("asked", "a") as log:
        log.write(f"{{model}} {{revision}}\\n")
    (Path(local_dir) / "model.safetensors").write_bytes({WEIGHTS!r})
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The volume, and beside it a hub that has one model."""
    (tmp_path / "huggingface_hub.py").write_text(HUB)
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def download(model: Path, wanted: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, "example/model", "abc", model, wanted],
        cwd=model.parent,
        env={**os.environ, "PYTHONPATH": f"{model.parent}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_model_is_fetched_once(model: Path) -> None:
    """A second run of the Job asks nobody."""
    for words in ("is complete", "is here already"):
        done = download(model, HASH)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
    assert (model.parent / "asked").read_text() == "example/model abc\n"


def test_other_weights_are_not_taken(model: Path) -> None:
    """The Job fails, names both hashes, and a retry fails as well."""
    for _ in range(2):
        done = download(model, "0" * 64)
        assert done.returncode == 1
        assert HASH in done.stderr
        assert "0" * 64 in done.stderr
    assert not (model / ".complete").exists()


def test_another_hash_is_another_model(model: Path) -> None:
    """What was complete under one hash is checked again under another."""
    assert download(model, HASH).returncode == 0
    assert download(model, "0" * 64).returncode == 1
