"""The one error a user can cause: a sentence that says what is wrong, and what to do next."""


class FedwardError(Exception):
    """A mistake a person can mend: bad settings, a missing file, a refused certificate.

    `str(error)` is one sentence naming the thing, its value and what would be right; `hint`, when
    given, is the next thing to try. The CLI prints both and exits with `exit_code`; it never prints
    a traceback for this class.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class SettingsError(FedwardError):
    """A key in a settings file is unknown, missing, of the wrong type, or contradicts another."""


class ProtocolError(FedwardError):
    """A message, payload or frame from another process is not what the protocol says."""

    exit_code = 3
