"""What every part of a running study needs."""

from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.errors import FedwardError
from protocol.study import StudySettings

from .directory import Directory
from .exchange import Exchange
from .folder import StudyFolder
from .journal import Journal
from .requests import RequestWriter


class StudyFailedError(FedwardError):
    """The study cannot go on; the message is its verdict."""


class StudyStoppedError(FedwardError):
    """A person stopped the study."""


@dataclass
class StudyContext:
    """One study at work. `past` are the request ids it has used: a reply to one is a replay."""

    folder: StudyFolder
    settings: StudySettings
    journal: Journal
    directory: Directory
    exchange: Exchange
    writer: RequestWriter
    clock: Callable[[], float]  # monotonic
    wall_clock: Callable[[], float]
    sleep: Callable[[float], None]
    past: set[str] = field(default_factory=set)

    def check_stop(self) -> None:
        """Raise if a person wants the study to end.

        Raises:
            StudyStoppedError: they do.
        """
        if self.folder.stop_asked:
            raise StudyStoppedError("stopped by the coordinator")
