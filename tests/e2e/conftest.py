"""Whole federations of real processes, started through the command line as a user would."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedward import launcher
from fedward.control import Address, ControlPlane
from fedward.federation import Federation, existing

COMMAND = [str(Path(sys.executable).parent / "fedward")]


def fedward(
    *words: str, folder: Path, timeout: float = 300, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run the CLI on `folder`."""
    env = {**os.environ, "FEDWARD_FOLDER": str(folder), "COLUMNS": "160"}
    done = subprocess.run(
        [*COMMAND, *words], env=env, capture_output=True, text=True, timeout=timeout, check=False
    )
    if check and done.returncode != 0:
        raise AssertionError(
            f"fedward {' '.join(words)} ended {done.returncode}\n{done.stdout}\n{done.stderr}\n"
            + tails(folder)
        )
    return done


def tails(folder: Path, lines: int = 25) -> str:
    """The end of every log of a federation, for a failing test's report."""
    return "\n".join(
        f"--- {file.name}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-lines:])
        for file in sorted((folder / "logs").glob("*.log"))
    )


@dataclass(frozen=True)
class Running:
    """A federation that is up."""

    folder: Path
    federation: Federation

    @property
    def plane(self) -> ControlPlane:
        return ControlPlane(Address.of(self.federation))

    def processes(self, *words: str) -> list[psutil.Process]:
        """The federation's processes whose command line has all the words."""
        pid = launcher.running(self.federation.layout)
        assert pid is not None
        found = []
        for process in psutil.Process(pid).children(recursive=True):
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if all(word in line for word in words):
                found.append(process)
        return found

    def wait(self, what: str, ready: Callable[[], Any], seconds: float = 120) -> Any:
        """Poll until `ready()` is true."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            value = ready()
            if value:
                return value
            time.sleep(0.1)
        raise AssertionError(f"not within {seconds:.0f} s: {what}\n{tails(self.folder)}")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, dict[str, Any], str]]:
    """`fedward demo --keep`: the running federation, its report and what it printed."""
    folder = tmp_path_factory.mktemp("d")
    done = fedward("demo", "--keep", folder=folder, timeout=600)
    federation = existing(folder)
    assert federation is not None
    try:
        (file,) = folder.glob("report.json")
        yield Running(folder, federation), json.loads(file.read_text()), done.stdout
    finally:
        fedward("down", folder=folder, check=False)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts a federation from a federation.toml's text; stops it after the test."""
    folders: list[Path] = []

    def start(text: str | None = None) -> Running:
        folder = tmp_path / f"f{len(folders)}"
        words = ["up"]
        if text is not None:
            file = tmp_path / "federation.toml"
            file.write_text(text)
            words.append(str(file))
        fedward(*words, folder=folder)
        folders.append(folder)
        federation = existing(folder)
        assert federation is not None
        return Running(folder, federation)

    yield start
    for folder in folders:
        fedward("down", folder=folder, check=False)


def kill(process: psutil.Process) -> None:
    """kill -9."""
    os.kill(process.pid, signal.SIGKILL)
