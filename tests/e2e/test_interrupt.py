"""Ctrl-C at any moment: every process ends, nothing is half-written, a second start works."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from .conftest import COMMAND, fedward


def left(folder: Path) -> list[str]:
    """Command lines of processes that still have to do with `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if str(folder) in line and process.pid != os.getpid():
            found.append(line)
    return found


@pytest.mark.timeout(300)
def test_interrupted_at_any_moment_nothing_is_left(tmp_path: Path) -> None:
    """The demo is interrupted while it imports, starts up and runs; then it starts again."""
    moments = ((1.0, signal.SIGINT), (3.0, signal.SIGTERM), (12.0, signal.SIGINT))
    for seconds, number in moments:
        demo = subprocess.Popen(
            [*COMMAND, "demo", "--folder", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        time.sleep(seconds)
        demo.send_signal(number)
        output, _ = demo.communicate(timeout=60)
        assert demo.returncode != 0
        assert "Traceback" not in output, f"after {seconds} s:\n{output}"
        until = time.monotonic() + 15
        while left(tmp_path) and time.monotonic() < until:
            time.sleep(0.2)
        assert left(tmp_path) == [], f"after {seconds} s"
        assert not list(tmp_path.rglob("*.partial"))
    fedward("up", folder=tmp_path)
    assert "up" in fedward("status", folder=tmp_path).stdout
    fedward("down", folder=tmp_path)
    assert left(tmp_path) == []
