"""Keeping child processes alive: start, restart with back-off, stop in order, leave none behind."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger("fedward.children")

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded before any fork: after it only async-signal-safe work is sound

FIRST_BACKOFF_SECONDS = 0.5
LAST_BACKOFF_SECONDS = 30.0
HEALTHY_SECONDS = 60.0  # a child that lived this long starts again with the shortest back-off


def die_with_parent() -> None:
    """For `preexec_fn`: the kernel ends the child when the thread that started it is gone."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def python_module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours with this interpreter."""
    return [sys.executable, "-m", name, *arguments]


@dataclass
class Child:
    """One process that is to be running.

    `command` is asked anew at each start, so a port or a file can differ. The child gets SIGTERM
    when this process dies, however it dies.
    """

    name: str
    command: Callable[[], Sequence[str]]
    env: dict[str, str] | None = None
    log_file: Path | None = None  # None: this process's own output
    restarts: int = 0
    last_exit: int | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _started: float = field(default=0.0, repr=False)
    _backoff: float = field(default=FIRST_BACKOFF_SECONDS, repr=False)
    _not_before: float = field(default=0.0, repr=False)

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start it now."""
        output = open(self.log_file, "ab") if self.log_file is not None else None  # noqa: PTH123, SIM115
        try:
            self._process = subprocess.Popen(
                list(self.command()),
                env=self.env if self.env is not None else dict(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output is not None else None,
                preexec_fn=die_with_parent,
            )
        finally:
            if output is not None:
                output.close()
        self._started = time.monotonic()

    def tend(self) -> bool:
        """Restart it if it has ended and its back-off is over; True when it was found ended."""
        if self._process is None:
            if time.monotonic() >= self._not_before:
                self.start()
            return False
        code = self._process.poll()
        if code is None:
            return False
        self._process, self.last_exit = None, code
        self.restarts += 1
        if time.monotonic() - self._started > HEALTHY_SECONDS:
            self._backoff = FIRST_BACKOFF_SECONDS
        self._not_before = time.monotonic() + self._backoff
        log.warning(
            "%s ended (%s); starting it again in %.1f s", self.name, _how(code), self._backoff
        )
        self._backoff = min(LAST_BACKOFF_SECONDS, self._backoff * 2)
        return True

    def ask_to_stop(self) -> None:
        """Ask it to end and do not wait: several can then end at the same time."""
        if self._process is not None:
            self._process.terminate()

    def stop(self, seconds: float = 10.0) -> None:
        """Ask it to end; after `seconds`, make it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            log.warning("%s did not stop in %.0f s; killing it", self.name, seconds)
            self._process.kill()
            self._process.wait()
        self._process = None


def stop_all(children: Sequence[Child], seconds: float = 10.0) -> None:
    """Stop children in the order given, all of them whatever happens to one."""
    for child in children:
        try:
            child.stop(seconds)
        except OSError as error:
            log.warning("%s: %s", child.name, error)


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
