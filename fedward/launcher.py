"""Keeps a whole local federation running: `python -m fedward.launcher FOLDER`.

One process of ours watches the control plane, the aggregator and, for each hospital, a trainer and
a link; whatever ends is started again. They all end with it, however it ends.
"""

import argparse
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from protocol.children import Child, python_module, stop_all
from protocol.errors import FedwardError

from .federation import Federation, Layout, existing

log = logging.getLogger("fedward.launcher")

TEND_SECONDS = 0.25
STOP_SECONDS = 20.0


def components(federation: Federation) -> list[Child]:
    """Every long-lived process, in the order in which they start."""
    layout = federation.layout

    def child(name: str, *command: str) -> Child:
        arguments = python_module(*command)
        return Child(name, lambda: arguments, dict(os.environ), layout.logs / f"{name}.log")

    control_plane = layout.control_plane / "control-plane.toml"
    aggregator = layout.aggregator / "aggregator.toml"
    children = [
        child("control-plane", "dashboard", "--settings", str(control_plane)),
        child("aggregator", "server.main", "--settings", str(aggregator)),
    ]
    for site in federation.sites:
        toml = str(layout.site(site) / "site.toml")
        children.append(child(f"{site}-trainer", "hospital_node.trainer", "--site", toml))
        children.append(child(f"{site}-link", "hospital_node.link", "--site", toml))
    return children


def run(federation: Federation, stop: threading.Event) -> None:
    """Keep every component running until `stop` is set."""
    children = components(federation)
    try:
        for child in children:
            child.start()
        while not stop.wait(TEND_SECONDS):
            for child in children:
                child.tend()
    finally:
        for child in children:
            child.ask_to_stop()
        stop_all(list(reversed(children)), STOP_SECONDS)


def start_in_background(federation: Federation) -> int:
    """Start a launcher that outlives this process; return its pid.

    Raises:
        FedwardError: one is running already, or it ended at once (its log says why).
    """
    layout = federation.layout
    if (pid := running(layout)) is not None:
        raise FedwardError(
            f"{layout.folder}: a federation is running there already (pid {pid})",
            hint="`fedward status` shows it, `fedward down` stops it",
        )
    log_file = layout.logs / "launcher.log"
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            python_module("fedward.launcher", str(layout.folder)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    until = time.monotonic() + 20
    while running(layout) != process.pid:
        if process.poll() is not None or time.monotonic() > until:
            raise FedwardError(f"the launcher did not start; see {log_file}")
        time.sleep(0.05)
    return process.pid


def running(layout: Layout) -> int | None:
    """The pid of the launcher that holds this folder, if one does."""
    try:
        with layout.pid_file.open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read())
    except (OSError, ValueError):
        pass
    return None


def stop_running(layout: Layout) -> bool:
    """Stop the launcher of this folder and wait for it; False when none runs."""
    pid = running(layout)
    if pid is None:
        return False
    try:
        process = psutil.Process(pid)
        family = process.children(recursive=True)
        process.terminate()
        process.wait(STOP_SECONDS + 10)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        process.kill()
    _, left = psutil.wait_procs(family, timeout=5)
    for straggler in left:
        log.warning("killing %d, which did not stop", straggler.pid)
        straggler.kill()
    return True


def _hold(layout: Layout) -> IO[str]:
    """Take the folder: the pid file is locked for as long as this process lives."""
    file = layout.pid_file.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FedwardError(f"{layout.folder}: a federation is running there already") from error
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file


def main() -> int:
    """Run the launcher in the foreground."""
    parser = argparse.ArgumentParser(prog="python -m fedward.launcher", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder made by `fedward up`")
    folder: Path = parser.parse_args().folder
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    federation = existing(folder)
    if federation is None:
        print(f"error: {folder}: no federation was prepared here", file=sys.stderr)
        return 2
    try:
        with _hold(federation.layout):
            run(federation, stop)
    except FedwardError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
