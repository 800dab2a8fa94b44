"""Is this site ready? Each check is one sentence, and what to do where the answer is no.

    for check in run_checks(load_site(path)):
        print("ok  " if check.ok else "FAIL", check.name, check.sentence, check.hint)

Checks look and change nothing (they write no file), quote no record, and one that fails does not
stop the others.
"""

import datetime
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from protocol.envelope import Envelope, load_signing_key, load_verify_key, unseal
from protocol.errors import FedwardError
from protocol.framing import Kind, receive, send
from protocol.messages import Progress
from protocol.site import SiteSettings

from .ledger import read as read_ledger
from .trainer.base_files import base_hash, parameter_count, weight_files
from .trainer.data import Row, read_rows
from .trainer.environment import quiet_libraries

# A tokenized corpus, a ledger and logs; the base itself is somewhere else.
_NEEDED_DISK_BYTES: Final = 1 << 30
# Nothing of ours existed before: a clock that says so was never set.
_EARLIEST_CLOCK: Final = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Check:
    """One answer. `hint` is empty where there is nothing to do."""

    name: str
    ok: bool
    sentence: str
    hint: str = ""


class _Problem(Exception):
    """The check's answer is no."""

    def __init__(self, sentence: str, hint: str = "") -> None:
        super().__init__(sentence)
        self.hint = hint


def run_checks(site: SiteSettings) -> list[Check]:
    """Every check of a site, in the order in which one would mend things."""
    quiet_libraries(allow_hub=False)
    checks: list[tuple[str, Callable[[SiteSettings], str]]] = [
        ("state folder", _state),
        ("coordinator's key", _coordinator_key),
        ("signing key", _signing_key),
        ("node key", _node_key),
        ("aggregator's CA", _ca),
        ("client certificate", _client_certificate),
        ("clock", _clock),
        ("training data", _train_data),
        ("held-out data", _heldout_data),
        ("base model", _base),
        ("tokenizer", _tokenizer),
        ("device", _device),
        ("disk space", _disk),
        ("ledger", _ledger),
        ("trainer", _socket),
    ]
    return [_run(name, check, site) for name, check in checks]


def _run(name: str, check: Callable[[SiteSettings], str], site: SiteSettings) -> Check:
    try:
        return Check(name, True, check(site))
    except _Problem as problem:
        return Check(name, False, str(problem), problem.hint)
    except FedwardError as error:
        return Check(name, False, str(error), error.hint)
    except OSError as error:
        return Check(name, False, f"{error.filename or 'system'}: {error.strerror or error}")


def _state(site: SiteSettings) -> str:
    folder = site.state
    if not folder.exists():
        return f"{folder} will be made at the first start"
    if not folder.is_dir():
        raise _Problem(f"state = {folder} is not a folder")
    _check_private(folder, "holds sockets, the ledger and tokenized records")
    return f"{folder} is private to this user"


def _coordinator_key(site: SiteSettings) -> str:
    load_verify_key(site.aggregator.signing_key)
    return f"{site.aggregator.signing_key} is an Ed25519 public key"


def _signing_key(site: SiteSettings) -> str:
    load_signing_key(site.trainer.signing_key)
    _check_private(site.trainer.signing_key, "signs what leaves")
    return f"{site.trainer.signing_key} is an Ed25519 key of private mode"


def _node_key(site: SiteSettings) -> str:
    path = site.link.node_key
    if not path.is_file():
        raise _Problem(
            f"link.node_key = {path}: there is no such file",
            "the link needs it, the trainer does not; enrolment writes it",
        )
    _check_private(path, "opens the aggregator's door")
    return f"{path} is there, of private mode"


def _ca(site: SiteSettings) -> str:
    now = datetime.datetime.now(datetime.UTC)
    path = site.aggregator.ca_certificate
    certificate = _certificate(path, "aggregator.ca_certificate")
    if now < certificate.not_valid_before_utc:
        raise _Problem(
            f"{path} is valid from {certificate.not_valid_before_utc:%Y-%m-%d}, which is ahead of "
            "this machine's clock",
            "set the clock (a time service such as chrony keeps it right)",
        )
    return _until(path, certificate, "ask the coordinator for the new CA certificate")


def _client_certificate(site: SiteSettings) -> str:
    path = site.aggregator.client_certificate
    if path is None:
        return "none: the link connects to the aggregator directly"
    return _until(
        path,
        _certificate(path, "aggregator.client_certificate"),
        "renew it: `fedward node enrol`, send the request, `fedward node install` what comes back",
    )


def _until(path: Path, certificate: x509.Certificate, renew: str) -> str:
    """Until when a certificate is good: said from 30 days on, urged from 7, a fault on the last."""
    end = certificate.not_valid_after_utc
    left = end - datetime.datetime.now(datetime.UTC)
    if left < datetime.timedelta(0):
        raise _Problem(f"{path} expired on {end:%Y-%m-%d}", renew)
    if left < datetime.timedelta(days=1):
        raise _Problem(f"{path} ends within a day, at {end:%Y-%m-%d %H:%M} UTC", renew)
    urged = f"; {renew}" if left < datetime.timedelta(days=7) else ""
    count = f" ({left.days} days left{urged})" if left < datetime.timedelta(days=30) else ""
    return f"{path} is valid until {end:%Y-%m-%d}{count}"


def _clock(_: SiteSettings) -> str:
    now = datetime.datetime.now(datetime.UTC)
    if now < _EARLIEST_CLOCK:
        raise _Problem(
            f"the clock says {now:%Y-%m-%d %H:%M} UTC, which cannot be",
            "set it: certificates are judged by it, and Flower ends a node with a wrong clock "
            "without a reason",
        )
    return f"the clock says {now:%Y-%m-%d %H:%M} UTC"


def _train_data(site: SiteSettings) -> str:
    rows = _rows(site.data.train, site)
    different = len(set(rows))
    note = "" if different == len(rows) else f", {different:,} of them different"
    return f"{len(rows):,} rows in {len(site.data.train)} file(s){note}"


def _heldout_data(site: SiteSettings) -> str:
    if not site.data.heldout:
        return f"no files: {site.data.heldout_fraction:.0%} of the training rows are set aside"
    rows = _rows(site.data.heldout, site)
    both = len(set(rows) & set(_rows(site.data.train, site)))
    if both:
        raise _Problem(
            f"{both:,} of {len(rows):,} held-out rows are also in data.train",
            "rows that were trained on say nothing about held-out accuracy: remove them",
        )
    scored = sum(bool(row.choices) for row in rows)
    return f"{len(rows):,} rows, {scored:,} of them multiple choice; none is trained on"


def _base(site: SiteSettings) -> str:
    folder = site.model.path
    if folder is None:
        how = "may be downloaded" if site.model.allow_hub else "must be a directory on this machine"
        return f"model.path is not set: the study names the base, which {how}"
    if not folder.is_dir():
        raise _Problem(f"model.path = {folder}: there is no such directory")
    size = sum(file.stat().st_size for file in weight_files(folder))
    sha256 = base_hash(folder, site.model.cache, keep=False)
    if site.model.sha256 is not None and site.model.sha256 != sha256:
        raise _Problem(
            f"{folder}: the weights hash to {sha256}, model.sha256 is {site.model.sha256}",
            "copy the model again, or correct model.sha256 if the new weights are meant",
        )
    return f"{folder}: {parameter_count(folder):,} weights, {size / 1e9:.2f} GB, sha256 {sha256}"


def _tokenizer(site: SiteSettings) -> str:
    folder = site.model.path
    if folder is None:
        return "comes with the base"
    try:
        from .trainer.model import load_tokenizer
    except ImportError as error:
        raise _Problem(
            f"the trainer's libraries are not installed ({error.name})",
            "install the trainer extra: pip install 'fedward[trainer]'",
        ) from error
    from .trainer.templates import check_template

    tokenizer = load_tokenizer(folder)
    check_template(tokenizer, "alpaca")
    chat = "with" if tokenizer.chat_template else "without"
    end = tokenizer.eos_token
    return f"{len(tokenizer):,} tokens, ends answers with {end!r}, {chat} a chat template"


def _device(site: SiteSettings) -> str:
    try:
        import torch
    except ImportError as error:
        raise _Problem("torch is not installed", "pip install 'fedward[trainer]'") from error
    if not torch.cuda.is_available():
        if site.trainer.device == "cuda":
            raise _Problem(
                'trainer.device = "cuda", but torch sees no CUDA GPU',
                "check the driver with nvidia-smi, and that torch is a CUDA build",
            )
        return f"CPU, {torch.get_num_threads()} threads"
    if site.trainer.device == "cpu":
        return "CPU, although there is a GPU: trainer.device says so"
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(index))
        found.append(f"{torch.cuda.get_device_name(index)}, {free:.0f} of {total:.0f} GiB free")
    return "; ".join(found)


def _disk(site: SiteSettings) -> str:
    folder = site.state
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < _NEEDED_DISK_BYTES:
        raise _Problem(
            f"{free / 1e9:.2f} GB are free for {site.state}; {_NEEDED_DISK_BYTES / 1e9:.0f} GB are "
            "needed",
            "free some: when the ledger cannot be written, nothing leaves this site",
        )
    return f"{free / 1e9:,.0f} GB are free for {site.state}"


def _ledger(site: SiteSettings) -> str:
    path = site.trainer.ledger
    if not path.exists():
        return "empty: nothing has left this site"
    entries, last = 0, 0.0
    for entry in read_ledger(path):
        entries, last = entry["seq"], float(entry.get("at", last))
    when = f", the last at {time.strftime('%Y-%m-%d %H:%M', time.localtime(last))}" if last else ""
    return f"{entries:,} entries in an unbroken chain{when}"


def _socket(site: SiteSettings) -> str:
    path = site.trainer.socket
    key = load_signing_key(site.trainer.signing_key).public_key()
    try:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(5.0)
            stream.connect(str(path))
            send(stream, Kind.STATUS, Envelope(b"", b""))
            frame = receive(stream)
    except (FileNotFoundError, ConnectionRefusedError):
        raise _Problem(
            f"nobody answers on {path}",
            "start it: python -m hospital_node.trainer --site SITE.toml",
        ) from None
    if frame is None or frame[0] is not Kind.PROGRESS:
        raise _Problem(f"what answers on {path} is no trainer")
    progress = unseal(frame[1], Progress, key, context="progress")
    return f"answers on {path}, state {progress.health.state.value}"


def _check_private(path: Path, why: str) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        private = "700" if path.is_dir() else "600"
        raise _Problem(
            f"{path} has mode {mode:04o}, so others on this machine can open it; it {why}",
            f"chmod {private} {path}",
        )


def _certificate(path: Path, key: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        raise _Problem(f"{key} = {path}: not a certificate in PEM format") from None


def _rows(files: Iterable[Path], site: SiteSettings) -> list[Row]:
    return [row for path in files for row in read_rows(path, site.data.columns)]
