"""The trainer's helpers: one process for each GPU but the first, started and ended by the trainer.

The trainer's own process is rank 0 and the only one that speaks to anybody: a helper hears of its
work through a socket pair, sums gradients with the others (`team`), and says when it is done. It
reads no data files: it is handed the token sequences of the round. It dies with the trainer.

Whatever goes wrong in one of them ends them all and fails the task; the next task starts them anew.
"""

import logging
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from protocol.children import die_with_parent
from protocol.site import SiteSettings
from protocol.states import Reason
from protocol.study import AdapterSettings, ModelSettings

from .adapter import Vector
from .errors import Refusal
from .model import choose_device
from .preference import Pairs, take
from .team import Team
from .tokens import TokenSet
from .training import Plan

log = logging.getLogger("fedward.trainer")

_START_SECONDS: Final = 300.0  # to import torch and its kin, on a slow disk
_LAST_WORDS_SECONDS: Final = 2.0
_DONE_SECONDS: Final = 1800.0


@dataclass(frozen=True)
class Begin:
    """A helper's first message."""

    site: SiteSettings
    meeting: Path
    rank: int
    size: int


@dataclass(frozen=True)
class Job:
    """One round for a helper; an `examples` of None only has it read the base."""

    model: ModelSettings
    adapter: AdapterSettings | None = None
    vector: Vector | None = None
    examples: TokenSet | Pairs | None = None
    plan: Plan | None = None


@dataclass(frozen=True)
class Said:
    """A helper's answer; without a reason: done (or here, as the first one)."""

    reason: Reason | None = None
    sentence: str = ""


def processes(site: SiteSettings) -> int:
    """How many processes train at this site.

    Raises:
        Refusal: more GPUs are asked for than there are.
    """
    asked = site.trainer.devices
    if choose_device(site.trainer.device).type != "cuda":
        return 1 if asked == "auto" else asked
    there = torch.cuda.device_count()
    if asked != "auto" and asked > there:
        raise Refusal(
            Reason.SITE_FORBIDS, f"trainer.devices = {asked}, but torch sees {there} CUDA GPU(s)"
        )
    return there if asked == "auto" else asked


class Crew:
    """The helpers of one trainer; none where one process trains alone."""

    def __init__(self, site: SiteSettings) -> None:
        self.site = site
        self.size = processes(site)
        self._helpers: list[tuple[subprocess.Popen[bytes], Connection]] = []
        self._team: Team | None = None
        self._folder: Path | None = None

    @property
    def pids(self) -> list[int]:
        """The helpers' process ids."""
        return [process.pid for process, _ in self._helpers]

    def read_base(self, model: ModelSettings) -> None:
        """Have the helpers read the base, while this process does other things."""
        if self.size > 1:
            self._start()
            try:
                self._tell(Job(model))
            except OSError as error:
                raise self._why(error) from error

    @contextmanager
    def work(
        self,
        model: ModelSettings,
        adapter: AdapterSettings,
        vector: Vector,
        examples: TokenSet | Pairs,
        rows: NDArray[np.int64],
        plan: Plan,
    ) -> Iterator[Team | None]:
        """Have the helpers train on `rows` with the caller, who calls `training.train` inside.

        Raises:
            Refusal: a helper could not do its part, or died.
        """
        if self.size == 1:
            yield None
            return
        self._start()
        try:
            part = take(examples, rows) if isinstance(examples, Pairs) else examples.take(rows)
            self._tell(Job(model, adapter, vector, part, plan))
            yield self._team
            for process, pipe in self._helpers:
                if not pipe.poll(_DONE_SECONDS):
                    raise RuntimeError(f"helper {process.pid} is silent")
                _hear(pipe)
        except (RuntimeError, OSError, EOFError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                self.close()
                raise
            raise self._why(error) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the helpers."""
        self._team = None
        for process, pipe in self._helpers:
            pipe.close()
            process.kill()
            process.wait()
        self._helpers = []
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _start(self) -> None:
        """Start those that are to be there, if they are not."""
        if self._helpers and all(process.poll() is None for process, _ in self._helpers):
            return
        if self._helpers:
            log.warning("a helper has ended; all are started again")
        self.close()
        self.site.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix="crew-", dir=self.site.state))
        meeting = self._folder / "meeting"
        try:
            for rank in range(1, self.size):
                self._helpers.append(_spawn(Begin(self.site, meeting, rank, self.size)))
            for process, pipe in self._helpers:
                if not pipe.poll(_START_SECONDS):
                    raise RuntimeError(f"helper {process.pid} did not start")
                _hear(pipe)
            self._team = Team(meeting, 0, self.size)
        except (RuntimeError, OSError, EOFError) as error:
            raise self._why(error) from error
        log.info("%d processes train together", self.size)

    def _tell(self, job: Job) -> None:
        for _, pipe in self._helpers:
            pipe.send(job)

    def _why(self, error: Exception) -> Refusal:
        """What a helper says, or how it ended, as the reason; ends them all."""
        found = [error] if isinstance(error, Refusal) else []
        for process, pipe in self._helpers:
            said = _last_words(pipe)
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(_LAST_WORDS_SECONDS)
                if code:
                    said = Refusal(
                        Reason.TRAINER_ERROR,
                        f"a helper process ended with {code} while it worked; it is started again",
                    )
            if said is not None:
                found.append(said)
        self.close()
        # Who lost a neighbour says so in general words; the neighbour's own are better.
        found.sort(key=lambda one: (one.reason is Reason.TRAINER_ERROR, "ended" not in str(one)))
        return found[0] if found else Refusal(Reason.TRAINER_ERROR, f"a helper process: {error}")


def _last_words(pipe: Connection) -> Refusal | None:
    """The reason a helper gives, if it still gives one."""
    with suppress(OSError, EOFError):
        while pipe.poll(_LAST_WORDS_SECONDS):
            said = pipe.recv()
            if said.reason is not None:
                return Refusal(said.reason, said.sentence)
    return None


def _spawn(begin: Begin) -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "hospital_node.trainer.helper", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
    pipe = Connection(ours.detach())
    pipe.send(begin)
    return process, pipe


def _hear(pipe: Connection) -> None:
    said = pipe.recv()
    if said.reason is not None:
        raise Refusal(said.reason, said.sentence)
