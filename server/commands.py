"""What people want, as the control plane hands it over: start and stop."""

import logging
from collections.abc import Callable
from pathlib import Path

from protocol.control import Command
from protocol.events import StudyQueued
from protocol.files import write_atomic

from .folder import StudyFolder
from .plane import ControlPlane

log = logging.getLogger(__name__)


class CommandReader:
    """Does each command once, also across restarts: its number is noted when it is done."""

    def __init__(
        self, plane: ControlPlane, position: Path, study: Callable[[str], StudyFolder]
    ) -> None:
        self._plane, self._position, self._study = plane, position, study

    def step(self) -> None:
        """Ask for commands and do them.

        Raises:
            PlaneError: the control plane does not answer.
            OSError: a new study's folder cannot be written.
        """
        for command in self._plane.commands(self._read()):
            self._do(command)
            write_atomic(self._position, str(command.id).encode())

    def _do(self, command: Command) -> None:
        study = self._study(command.study_id)
        if command.action == "start" and command.settings is not None:
            if study.create(command.settings) or not study.events:
                study.journal.append(StudyQueued, settings=command.settings)
                log.info("study %s is queued", command.study_id)
        elif command.action == "stop" and study.path.exists() and not study.ended:
            study.ask_to_stop()
            log.info("study %s is to stop", command.study_id)

    def _read(self) -> int:
        try:
            return int(self._position.read_text())
        except (OSError, ValueError):
            return 0
