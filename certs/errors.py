"""The errors of this package: each is one sentence about one file or name, and what to do next.

`certs/` imports nothing of ours, so this small tree stands beside `protocol.errors.FedwardError`
instead of under it; it has the same `hint` and `exit_code`, and the CLI prints both alike.
"""


class CertError(Exception):
    """Something about a key, a certificate, a request or a bundle that a person can mend.

    `str(error)` is one sentence naming the file or name, its value and what would be right;
    `hint` is the next thing to try; `code` is the sentence's fixed name in
    `certs.sentences.REFUSALS`, for tests, logs and counters.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


class NameRefused(CertError):
    """A site, a server name, a role or a lifetime is not one that may stand in a certificate."""


class FileRefused(CertError):
    """A file is missing, unreadable, too large, or not what its name says."""


class KeyRefused(CertError):
    """A private or public key is of the wrong kind, unprotected, locked or not the matching one."""


class CertificateRefused(CertError):
    """A certificate, its chain or its revocation list would be refused by the other side."""


class RequestRefused(CertError):
    """A hospital's enrolment request is forged, altered or not acceptable now."""

    exit_code = 3


class BundleRefused(CertError):
    """An enrolment bundle is not for this hospital, or not from its coordinator."""

    exit_code = 3


class StateRefused(CertError):
    """The coordinator's own records (registry, CA folder, audit log) do not allow the act."""
