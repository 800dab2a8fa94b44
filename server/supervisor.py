"""Takes studies from queued to ended, whatever dies on the way.

    no run          -> submit
    run, lease held -> somebody works on it
    verdict, free   -> close the journal, write the report
    run, free       -> its ServerApp is gone without a verdict: interrupted, submit again

The lease (a lock that the kernel frees) says at once whether a ServerApp lives; Flower would say it
after 60 s of silence. All of it is read from the study's folder at every look, so a supervisor that
was killed goes on where it was.
"""

import contextlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from protocol.errors import FedwardError
from protocol.events import (
    Event,
    RoundFinished,
    StudyEnded,
    StudyInterrupted,
    StudyStarted,
)
from protocol.states import StudyState

from ._flower import ControlClient, ControlError, FlowerRun, build_fab
from .checkpoint import load_latest
from .folder import Runs, StudyFolder, Verdict
from .journal import StudyOverError
from .report import write_report
from .settings import AggregatorSettings

log = logging.getLogger(__name__)

APP_FOLDER = Path(__file__).resolve().parent.parent / "fedward" / "flower_app"
LEAVE_SECONDS = 5.0
STOP_SECONDS = 15.0  # for a ServerApp to end in order before its run is stopped


class Supervisor:
    """One study at a time, in the order in which they came: a hospital trains one at a time."""

    def __init__(self, settings: AggregatorSettings, control: ControlClient) -> None:
        self._settings, self._control = settings, control
        self._stopping_since: dict[str, float] = {}
        self._ended: set[str] = set()

    def studies(self) -> list[StudyFolder]:
        """Every study with a journal, oldest first."""
        root = self._settings.studies
        found = [path for path in root.iterdir() if (path / "events.jsonl").exists()]
        found.sort(key=lambda path: ((path / "study.json").stat().st_mtime, path.name))
        return [StudyFolder(path, path.name) for path in found]

    def step(self) -> None:
        """Look at all studies that have not ended; move the first of them, end what is to stop.

        Raises:
            ControlError: the SuperLink is away; the next look tries again.
        """
        open_studies = [study for study in self.studies() if not self._is_over(study)]
        for study in open_studies:
            if study.stop_asked and not study.runs.ids:
                self._close_if_done(study)
        for study in open_studies:
            if study.lease.held_by_another():
                self._hurry_stop(study)
                return
            if self._is_leaving(study):
                return
            if not self._is_over(study) and not self._close_if_done(study):
                self._move(study)
                return

    def _is_over(self, study: StudyFolder) -> bool:
        if study.study_id not in self._ended and study.ended:
            self._ended.add(study.study_id)
        return study.study_id in self._ended

    # -- nobody works on it ------------------------------------------------------------------

    def _is_leaving(self, study: StudyFolder) -> bool:
        """Whether a ServerApp that gave its verdict a moment ago still takes leave of Flower."""
        verdict, runs = study.path / "verdict.json", study.runs
        if not verdict.exists() or not runs.ids:
            return False
        run = self._run(runs.ids[-1])
        going_on = run is not None and run.status != "finished"
        return going_on and time.time() - verdict.stat().st_mtime < LEAVE_SECONDS

    def _close_if_done(self, study: StudyFolder) -> bool:
        """Close the journal of a study that has its verdict, or is not to begin."""
        verdict = study.verdict
        if verdict is None and study.stop_asked:
            verdict = Verdict(
                state=StudyState.STOPPED,
                rounds=_rounds(study),
                verdict="stopped by the coordinator",
            )
        if verdict is None:
            return False
        self._close(study, verdict)
        return True

    def _close(self, study: StudyFolder, verdict: Verdict) -> None:
        runs = [run for run in map(self._run, study.runs.ids) if run is not None]
        for run in runs:
            if run.status != "finished":
                self._stop_run(run.run_id)
        with contextlib.suppress(StudyOverError):  # it was closed before
            study.with_reserve(
                lambda: study.journal.append(
                    StudyEnded,
                    state=verdict.state,
                    rounds=verdict.rounds,
                    verdict=verdict.verdict,
                    flower_bytes_in=sum(run.bytes_in for run in runs),
                    flower_bytes_out=sum(run.bytes_out for run in runs),
                )
            )
        write_report(study.path, study.events)
        (study.path / "reserve").unlink(missing_ok=True)
        log.info("study %s %s: %s", study.study_id, verdict.state, verdict.verdict)

    def _move(self, study: StudyFolder) -> None:
        runs, events = study.runs, study.events
        if not runs.ids:
            self._submit(study)
            return
        interrupted = isinstance(events[-1], StudyInterrupted)
        if interrupted and runs.submitted_at < events[-1].at:
            self._submit_after_pause(study, events)
            return
        cause = self._cause_of_death(study, runs, events)
        if cause:
            log.warning("study %s is interrupted: %s", study.study_id, cause)
            # A node may be waiting for parts of a message that nobody will send any more.
            self._stop_run(runs.ids[-1])
            study.journal.append(StudyInterrupted, last_round=_rounds(study), cause=cause[:200])

    def _cause_of_death(self, study: StudyFolder, runs: Runs, events: Sequence[Event]) -> str:
        """Why nobody works on a study that was submitted; "" while it may still begin."""
        run = self._run(runs.ids[-1])
        over = run is None or run.status == "finished"
        began = any(
            isinstance(event, StudyStarted) and event.flower_run_id == str(runs.ids[-1])
            for event in events
        )
        if began:
            words = f" (Flower says {run.sub_status or run.status})" if run else ""
            return f"the ServerApp ended without a verdict{words}"
        if over:
            return "Flower ended the run before it began: " + (
                run.sub_status or "no reason" if run else "it does not know the run"
            )
        waited = time.time() - runs.submitted_at
        if waited > self._settings.supervision.start_seconds:
            return f"the ServerApp did not start within {waited:.0f} s"
        return ""

    def _submit_after_pause(self, study: StudyFolder, events: Sequence[Event]) -> None:
        """Submit again; each failure in a row without a finished round doubles the pause."""
        failures = 0
        for event in events:
            if isinstance(event, StudyInterrupted):
                failures += 1
            elif isinstance(event, RoundFinished):
                failures = 0
        if failures >= self._settings.supervision.attempts:
            words = (
                f"interrupted {failures} times in a row without finishing a round; the last "
                f"cause: {getattr(events[-1], 'cause', '')}"
            )
            verdict = Verdict(state=StudyState.FAILED, rounds=_rounds(study), verdict=words[:500])
            study.write_verdict(verdict)
        elif time.time() >= events[-1].at + min(60.0, 2.0 ** (failures - 1) - 1):
            self._submit(study)

    def _submit(self, study: StudyFolder) -> None:
        try:
            fab = build_fab(APP_FOLDER)
        except (OSError, ValueError) as error:
            raise FedwardError(f"{APP_FOLDER}: cannot be bundled: {error}") from error
        run_id = self._control.start(fab, {"study-id": study.study_id})
        study.write_runs(Runs(ids=(*study.runs.ids, run_id), submitted_at=time.time()))
        log.info("study %s is submitted", study.study_id)

    # -- somebody works on it ----------------------------------------------------------------

    def _hurry_stop(self, study: StudyFolder) -> None:
        """A ServerApp that is told to stop and does not is stopped through Flower."""
        if not study.stop_asked:
            return
        since = self._stopping_since.setdefault(study.study_id, time.monotonic())
        if time.monotonic() - since > STOP_SECONDS and study.runs.ids:
            self._stop_run(study.runs.ids[-1])

    # -- Flower ------------------------------------------------------------------------------

    def _run(self, run_id: int) -> FlowerRun | None:
        try:
            return self._control.run(run_id)
        except ControlError as error:
            if "cannot be reached" in str(error):
                raise
            return None

    def _stop_run(self, run_id: int) -> None:
        try:
            self._control.stop(run_id)
        except ControlError as error:
            if "cannot be reached" in str(error):
                raise
            log.debug("run %d: %s", run_id, error)  # it had ended


def _rounds(study: StudyFolder) -> int:
    checkpoint = load_latest(study.path)
    return checkpoint.round if checkpoint else 0
