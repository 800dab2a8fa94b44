"""The long-lived process: socket, inbox, one worker, one door; and how it ends.

connection threads          worker thread                    main thread
frame -> inbox.admit -----> tasks.answer -> outbound.release  waits for a signal
      <- reply ------------ job.future
STATUS -> board -> outbound.release -> PROGRESS, at once, also while the worker trains
"""

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
import time
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Final

from hospital_node.ledger import Ledger, LedgerError, read
from hospital_node.outbound import Outbound, OutboundRefused, reason_of
from protocol.envelope import Envelope, load_signing_key, load_verify_key
from protocol.errors import FedwardError, ProtocolError, SettingsError
from protocol.files import write_atomic
from protocol.framing import Kind, receive, send
from protocol.messages import Reply, Timing
from protocol.site import SiteSettings
from protocol.states import Reason

from .board import Board
from .environment import quiet_libraries
from .errors import Cancelled, Refusal
from .health import HealthReader
from .inbox import Inbox, Job, refusal
from .listener import Listener, RemoteListener
from .live_data import LiveData

if TYPE_CHECKING:
    from .tasks import Tasks

log = logging.getLogger("fedward.trainer")

# Docker and Kubernetes allow 10 s or more; the link's user should not wait for a training step.
_STOP_SECONDS: Final = 1.0
# Between two looks for data that could not be read.
_LOOK_SECONDS: Final = 5.0


class Service:
    """A site's trainer.

    Making one checks all that can be checked without torch, which takes seconds to import.

    Data that cannot be read do not keep it from starting: the coordinator then learns why this
    site is out of a study, and it takes part again when they are back.

    Raises:
        FedwardError: a setting, key, ledger or socket is not usable; a sentence.
    """

    def __init__(self, site: SiteSettings) -> None:
        self.site = site
        coordinator = load_verify_key(site.aggregator.signing_key)
        key = load_signing_key(site.trainer.signing_key)
        _make_private(site.state)
        self._data = LiveData(site.data)
        self._secret = _secret(site.state / "fingerprint.key")
        self._ledger = Ledger(site.trainer.ledger)
        self._outbound = Outbound(site.name, key, self._ledger)
        self._tasks: Tasks | None = None
        health = HealthReader(site.state, lambda: self._tasks.shelf.loads if self._tasks else 0)
        self._board = Board(site.name, health)
        self._inbox = Inbox(site, coordinator, read(site.trainer.ledger))
        self._stop = threading.Event()
        self._failure: FedwardError | None = None
        self._worker = threading.Thread(target=self._work, name="worker", daemon=True)
        self._listeners: list[Listener | RemoteListener] = [Listener(site.trainer.socket)]
        if site.trainer.remote is not None:
            self._listeners.append(RemoteListener(site.trainer.remote))

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            FedwardError: the worker could not start.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        self._worker.start()
        for listener in self._listeners:
            listener.start(self._connection)
        log.info("%s: listening on %s", self.site.name, self.site.trainer.socket)
        self._stop.wait()
        for listener in self._listeners:
            listener.close()
        self._inbox.cancel_all()
        self._worker.join(_STOP_SECONDS if self._failure is None else 0.0)
        # A worker inside a long step is left where it is: files are written whole or not at all,
        # and closing the ledger waits for a line that is being written.
        with contextlib.suppress(LedgerError):
            self._outbound.close()
        self._ledger.close()
        if self._failure is not None:
            raise self._failure
        log.info("%s: stopped", self.site.name)

    def _connection(self, stream: socket.socket) -> None:
        """Answer frames until the peer closes or breaks the protocol."""
        try:
            while (frame := receive(stream)) is not None:
                kind, envelope = frame
                if kind is Kind.STATUS:
                    progress = self._outbound.release(self._board.progress())
                    send(stream, Kind.PROGRESS, progress)
                elif kind is Kind.REQUEST:
                    reply = self._reply(envelope)
                    if reply is None:
                        return
                    send(stream, Kind.REPLY, reply)
                else:
                    log.warning("a frame of kind %s is not for a trainer", kind.name)
                    return
        except ProtocolError as error:
            log.warning("connection closed: %s", error)
        except OSError as error:
            log.info("connection lost: %s", error.strerror or error)
        except (OutboundRefused, LedgerError) as error:
            log.error("nothing was sent: %s", error)

    def _reply(self, envelope: Envelope) -> Envelope | None:
        """The answer to a request; None when there is none to give (stopping, no ledger)."""
        try:
            job = self._inbox.admit(envelope)
        except Refusal as error:
            log.warning("refused (%s): %s", error.reason, error)
            answer = refusal(envelope, self.site.name, error.reason)
            return self._outbound.release(answer)
        del envelope  # its payload belongs to the job, which lets go of it when done
        try:
            return job.future.result()
        except (Cancelled, LedgerError):
            return None

    def _work(self) -> None:
        """The worker's life; whatever ends it early ends the process, with a sentence."""
        try:
            self._look_at_data()
            tasks = self._load_libraries()
            self._rest()
            while (job := self._next()) is not None and not self._stop.is_set():
                self._do(job, tasks)
        except FedwardError as error:
            self._failure = error
            self._stop.set()
        except Exception as error:
            log.exception("the worker ended")
            self._failure = FedwardError(f"the trainer's worker ended: {type(error).__name__}")
            self._stop.set()

    def _next(self) -> Job | None:
        """The next job, or None at the end; without data it looks for them while it waits."""
        while True:
            try:
                return self._inbox.queue.get(timeout=_LOOK_SECONDS if self._data.trouble else None)
            except Empty:
                self._look_at_data()
                self._rest()

    def _look_at_data(self) -> None:
        with contextlib.suppress(Refusal):  # it is logged, and on the board with the next rest
            self._data.look()

    def _rest(self) -> None:
        """Nothing is under way: idle, or unable to do anything without data."""
        if self._data.trouble is None:
            self._board.idle()
        else:
            self._board.broken(self._data.trouble)

    def _load_libraries(self) -> "Tasks":
        """Import torch and its kin in this thread, which alone uses them."""
        quiet_libraries(allow_hub=self.site.model.allow_hub)
        try:
            import torch

            from .model import warm_up
            from .tasks import Tasks

            warm_up()
        except (ImportError, OSError) as error:
            raise SettingsError(
                f"the trainer's libraries cannot be loaded: {error}",
                hint="install them: pip install 'fedward[trainer]'",
            ) from error
        if self.site.trainer.threads:
            torch.set_num_threads(self.site.trainer.threads)
        self._tasks = Tasks(self.site, self._data, self._secret, self._board)
        return self._tasks

    def _do(self, job: Job, tasks: "Tasks") -> None:
        """Do one job and set its future, whatever happens."""
        self._board.begin(job.request)
        broken: Reason | None = None
        try:
            job.future.set_result(self._answer(job, tasks))
        except LedgerError as error:
            log.error("%s", error)
            broken = Reason.TRAINER_ERROR
            job.future.set_exception(error)
        except BaseException as error:  # noqa: BLE001 - a connection waits for this future
            job.future.set_exception(error if isinstance(error, Cancelled) else Cancelled())
            if not isinstance(error, Cancelled):
                log.error("no answer: %s", type(error).__name__)
        self._inbox.finished(job)
        if broken is not None:
            self._board.broken(broken)
        else:
            self._rest()

    def _answer(self, job: Job, tasks: "Tasks") -> Envelope:
        queue = time.monotonic() - job.received
        try:
            if job.cancel.is_set():
                raise Cancelled
            answer = tasks.answer(job.request, job.payload, queue, job.cancel)
            envelope = self._outbound.release(
                answer.reply, answer.update, request_digest=job.digest
            )
            job.done = True
            return envelope
        except LedgerError:
            raise
        except Exception as error:
            if self._stop.is_set():
                raise Cancelled from error  # no answer: the link asks the next trainer
            reason = _log_failure(error)
            reply = refusal_of(job, self.site.name, reason, queue, self._board)
            return self._outbound.release(reply, request_digest=job.digest)


def refusal_of(job: Job, site: str, reason: Reason, queue: float, board: Board) -> Reply:
    """The reply that carries a reason and nothing else of what happened."""
    request = job.request
    state = board.progress().health.state
    return Reply(
        request_id=request.request_id,
        study_id=request.study_id,
        site=site,
        task=request.task,
        round=request.round,
        reason=reason,
        timing=Timing(queue=queue, total=time.monotonic() - job.received - queue),
        health=board.health.read(state, reason),
    )


def _log_failure(error: Exception) -> Reason:
    """Write what happened to the site's own log; return the code that travels."""
    if isinstance(error, ProtocolError):
        log.error("the adapter that came cannot be used: %s", error)
        return Reason.MALFORMED
    reason = reason_of(error)
    if isinstance(error, FedwardError | OutboundRefused | Cancelled):
        log.error("not done (%s): %s", reason, error)
    else:
        log.error("not done (%s)", reason, exc_info=error)
    return reason


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"state = {folder}: cannot make it: {error.strerror or error}"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError(f"state = {folder}: this user cannot write there")


def _secret(path: Path) -> bytes:
    """The key of data fingerprints: 32 random bytes, made at the first start, mode 0600."""
    try:
        if not path.exists():
            write_atomic(path, secrets.token_bytes(32), mode=0o600)
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: cannot read or make it: {error.strerror or error}") from error
