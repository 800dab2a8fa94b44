"""The ServerApp: one study, from its folder to its verdict.

Flower starts it in a process of its own for every run. It reads `FEDWARD_AGGREGATOR` (the path of
aggregator.toml) from its environment and the study's id from the run's configuration, goes on from
the last checkpoint, and leaves verdict.json. Flower's run status is of no interest: it says
`completed` even when every node failed.
"""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import http_grid

from protocol.envelope import load_signing_key
from protocol.errors import FedwardError, SettingsError
from protocol.events import StudyStarted
from protocol.flower import pull_soon
from protocol.states import StudyState

from .adapter import write_adapter
from .checkpoint import Checkpoint, load_latest
from .context import StudyContext, StudyStoppedError
from .directory import Directory
from .exchange import Exchange
from .folder import StudyFolder, Verdict
from .lease import HeldError, Lease
from .pulse import Pulse
from .requests import RequestWriter
from .rounds import missing_round_event
from .settings import SETTINGS_VARIABLE, AggregatorSettings, load_aggregator
from .study import Study

_PR_SET_PDEATHSIG = 1  # prctl(2): the signal a process gets when its parent dies
LEASE_SECONDS = 30.0  # a predecessor that was killed lets go at once; one that ends takes a little

log = logging.getLogger(__name__)
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study that the run's configuration names."""
    _log_ours()
    _die_with_superexec()
    pull_soon(http_grid, "pull_objects")
    path = os.environ.get(SETTINGS_VARIABLE)
    if not path:
        raise SettingsError(f"{SETTINGS_VARIABLE} is not set: it must name aggregator.toml")
    settings = load_aggregator(Path(path))
    study_id = str(context.run_config["study-id"])
    run_study(grid, settings, study_id, flower_run_id=str(context.run_id))


def _die_with_superexec() -> None:
    """End at once when the SuperExec does.

    Flower notices too, but then tries to hand in its logs, which takes for ever if the SuperLink is
    gone as well; and what counts is on disk.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _log_ours() -> None:
    """Our own lines to standard output, which Flower keeps; its own logger stays as it is."""
    ours = logging.getLogger(__package__)
    if not ours.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)
        ours.propagate = False


def run_study(
    grid: Grid, settings: AggregatorSettings, study_id: str, *, flower_run_id: str
) -> None:
    """Work on a study until it has a verdict, or until this process is killed."""
    folder = StudyFolder(settings.study(study_id), study_id)
    lease = _acquire(folder)
    try:
        if folder.verdict is not None or folder.ended:
            log.info("study %s has its verdict already", study_id)
            return
        verdict = _work(grid, settings, folder, flower_run_id)
        folder.write_verdict(verdict)
        log.info("study %s: %s: %s", study_id, verdict.state, verdict.verdict)
    finally:
        lease.release()


def _work(
    grid: Grid, settings: AggregatorSettings, folder: StudyFolder, flower_run_id: str
) -> Verdict:
    checkpoint = load_latest(folder.path)
    done = checkpoint.round if checkpoint else 0
    try:
        folder.make_reserve()
        context = study_context(grid, settings, folder)
        if checkpoint is not None:
            missing_round_event(context, checkpoint)
        starts = sum(isinstance(event, StudyStarted) for event in folder.events)
        context.journal.append(
            StudyStarted, flower_run_id=flower_run_id, from_round=done, attempt=starts + 1
        )
        return Study(context, checkpoint).run()
    except StudyStoppedError as error:
        return _verdict(folder, StudyState.STOPPED, str(error))
    except FedwardError as error:
        return _verdict(folder, StudyState.FAILED, str(error))
    except OSError as error:
        text = f"{error.filename or folder.path}: {error.strerror or error}"
        return _verdict(folder, StudyState.FAILED, f"{text}; round {done} is kept")


def study_context(grid: Grid, settings: AggregatorSettings, folder: StudyFolder) -> StudyContext:
    """Everything a study works with."""
    study = folder.settings
    directory = Directory(grid, settings.registry, study.sites)
    context = StudyContext(
        folder=folder,
        settings=study,
        journal=folder.journal,
        directory=directory,
        exchange=Exchange(grid, directory),
        writer=RequestWriter(folder.study_id, study, load_signing_key(settings.signing_key)),
        clock=time.monotonic,
        wall_clock=time.time,
        sleep=time.sleep,
    )
    context.exchange = Exchange(
        grid,
        directory,
        check_stop=context.check_stop,
        epoch=lambda: _contents(settings.epoch),
        pulse=Pulse(settings),
    )
    return context


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _verdict(folder: StudyFolder, state: StudyState, words: str) -> Verdict:
    """How a study ends that did not reach its end; what it has so far is left as an adapter."""
    last: Checkpoint | None = load_latest(folder.path)
    if last is not None:
        with contextlib.suppress(OSError):
            write_adapter(folder.path, folder.settings, last.manifest, last.adapter, last.merges)
    return Verdict(state=state, rounds=last.round if last else 0, verdict=words[:500])


def _acquire(folder: StudyFolder) -> Lease:
    lease, deadline = folder.lease, time.monotonic() + LEASE_SECONDS
    while True:
        try:
            lease.acquire()
            return lease
        except HeldError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.2)
