"""Why the trainer does not do something: a sentence for the site's log, a code that travels."""

from protocol.errors import FedwardError
from protocol.states import Reason


class Refusal(FedwardError):
    """The work cannot be done; the sentence stays at the site, `reason` travels.

    The sentence names files, lines, columns and settings, and never quotes a cell.
    """

    def __init__(self, reason: Reason, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class Cancelled(Exception):
    """The work was told to stop: the process ends, or a newer request replaced it."""

    reason = Reason.INTERRUPTED
