"""Fixtures of the trainer's tests."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .lab import Client, SiteFolder, Trainer, build_model


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`bases("gpt2")`: the folder of a tiny model, made once for all tests."""
    root = tmp_path_factory.mktemp("bases")

    def get(kind: str) -> Path:
        folder = root / kind
        return folder if folder.exists() else build_model(kind, folder)

    return get


@pytest.fixture
def site(tmp_path: Path, bases: Callable[[str], Path]) -> SiteFolder:
    """A hospital with the tiny Llama."""
    return SiteFolder(tmp_path / "h", bases("llama"))


@pytest.fixture
def start() -> Iterator[Callable[..., Trainer]]:
    """`start(site_folder, **how_to_write_it)`: a trainer that listens; killed at the end."""
    running: list[subprocess.Popen[str]] = []

    def begin(folder: SiteFolder, **kwargs: Any) -> Trainer:
        settings = folder.settings(**kwargs)
        log = folder.home / f"trainer-{len(running)}.log"
        with log.open("w") as output:
            command = [sys.executable, "-m", "hospital_node.trainer", "--site"]
            process = subprocess.Popen(
                [*command, folder.home / "site.toml"], stderr=output, text=True
            )
        running.append(process)
        trainer = Trainer(process, Client(folder, settings.trainer.socket), log)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()
            try:
                trainer.client.status()
                return trainer
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.05)
        raise AssertionError(log.read_text())

    yield begin
    for process in running:
        process.kill()
        process.wait()
