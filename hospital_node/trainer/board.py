"""What the trainer is doing, written by the worker and read by whoever asks for status."""

import threading
import time
from typing import Any

from protocol.messages import Progress, Request
from protocol.states import Reason, TrainerState

from .health import HealthReader


class Board:
    """The current state, safe to read from any thread."""

    def __init__(self, site: str, health: HealthReader) -> None:
        self.site = site
        self.health = health
        self._lock = threading.Lock()
        self._state = TrainerState.STARTING
        self._reason: Reason | None = None
        self._fields: dict[str, Any] = {}
        self._began = 0.0
        self._tokens = 0

    def begin(self, request: Request) -> None:
        """A request's work begins."""
        with self._lock:
            self._fields = {
                "study_id": request.study_id,
                "task": request.task,
                "round": request.round,
            }

    def enter(self, state: TrainerState, steps: int = 0) -> None:
        """The work goes into `state`, which has `steps` steps."""
        with self._lock:
            self._state, self._reason = state, None
            self._fields |= {"step": 0, "steps": steps, "loss": None}
            self._began, self._tokens = time.monotonic(), 0

    def step(
        self, step: int, *, steps: int = 0, loss: float | None = None, tokens: int = 0
    ) -> None:
        """Step `step` (of `steps`, if that is news) ended; `tokens` real tokens went through it."""
        with self._lock:
            self._fields["step"] = step
            if steps:
                self._fields["steps"] = steps
            if loss is not None:
                self._fields["loss"] = loss
            self._tokens += tokens

    def idle(self) -> None:
        """Nothing to do."""
        with self._lock:
            self._state, self._fields, self._tokens = TrainerState.IDLE, {}, 0

    def broken(self, reason: Reason) -> None:
        """It cannot work until a person mends something."""
        with self._lock:
            self._state, self._reason = TrainerState.BROKEN, reason
            self._fields, self._tokens = {}, 0

    def progress(self) -> Progress:
        """All of it, as the message that leaves."""
        with self._lock:
            elapsed = time.monotonic() - self._began
            state, reason, fields = self._state, self._reason, dict(self._fields)
            speed = self._tokens / elapsed if self._tokens and elapsed > 0 else 0.0
        return Progress(
            site=self.site,
            sent_at=time.time(),
            tokens_per_second=speed,
            health=self.health.read(state, reason),
            **fields,
        )
