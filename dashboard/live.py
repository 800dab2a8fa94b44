"""What is true now: each hospital's newest signed report, and who is waiting to hear of it.

Reports come every two seconds from every hospital. They are held in memory and written to the
database once a second, in one transaction: a kill loses at most the newest second, and the site
reports again.
"""

import asyncio
import logging
import threading
import time
from dataclasses import dataclass, replace

from protocol.control import MAX_PROGRESS_BYTES
from protocol.envelope import SignatureError, unseal
from protocol.errors import ProtocolError, SettingsError
from protocol.framing import Kind, parse
from protocol.messages import Health, Progress
from protocol.registry import EnrolledSite

from .database import Database
from .enrolled import Enrolled
from .models import SiteProgress
from .problems import Problem

log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0


@dataclass(frozen=True)
class Report:
    """A hospital's newest report, with what we noted about it."""

    progress: Progress
    received_at: float
    clock_offset: float
    trainer_started_at: float = 0.0
    trainer_restarts: int = 0
    version: int = 0


class Reports:
    """The newest report of every hospital."""

    def __init__(self, database: Database, enrolled: Enrolled, *, ahead_seconds: float) -> None:
        self._database = database
        self._enrolled = enrolled
        self._ahead = ahead_seconds
        self._lock = threading.Lock()
        self._newest: dict[str, Report] = {}
        self._unwritten: set[str] = set()
        self.version = 0
        self._load()

    def accept(self, body: bytes, *, now: float | None = None) -> Report:
        """Check a framed, signed report and keep it.

        Raises:
            ProtocolError: not a report.
            Problem: not signed by an active site's key, or older than one that was accepted.
        """
        now = time.time() if now is None else now
        if len(body) > MAX_PROGRESS_BYTES:
            raise Problem(413, "too-large", f"a report has at most {MAX_PROGRESS_BYTES} bytes")
        kind, envelope = parse(body)
        if kind is not Kind.PROGRESS or envelope.payload:
            raise ProtocolError("not a progress frame")
        claimed = _claimed_site(envelope.header)
        site = self._site(claimed)
        try:
            progress = unseal(envelope, Progress, site.verify_key, context="progress")
        except (SignatureError, SettingsError) as error:
            raise Problem(401, "bad-signature", str(error)) from error
        if progress.site != claimed:
            raise ProtocolError("the report names two sites")
        return self._keep(progress, now)

    def note_health(self, site: str, at: float, health: Health) -> None:
        """Take the health that travelled with a reply, where no newer report is known."""
        with self._lock:
            known = self._newest.get(site)
            if known is not None and known.received_at >= at:
                return
            progress = (
                known.progress.model_copy(update={"health": health})
                if known is not None
                else Progress(site=site, sent_at=0.0, health=health)
            )
            self._put(site, self._counted(known, progress, at, 0.0))

    def all(self) -> dict[str, Report]:
        """Every site's newest report."""
        with self._lock:
            return dict(self._newest)

    def since(self, version: int) -> list[Report]:
        """The reports that came after `version`."""
        with self._lock:
            return [report for report in self._newest.values() if report.version > version]

    def flush(self) -> None:
        """Write what changed to the database."""
        with self._lock:
            due = {site: self._newest[site] for site in self._unwritten}
            self._unwritten.clear()
        if not due:
            return
        with self._database.writing() as session:
            for site, report in due.items():
                session.merge(
                    SiteProgress(
                        site=site,
                        sent_at=report.progress.sent_at,
                        received_at=report.received_at,
                        clock_offset=report.clock_offset,
                        body=report.progress.model_dump_json(),
                        trainer_started_at=report.trainer_started_at,
                        trainer_restarts=report.trainer_restarts,
                    )
                )

    def _site(self, name: str) -> EnrolledSite:
        site = self._enrolled.registry().sites.get(name)
        if site is None:
            raise Problem(401, "unknown-site", "the report is from nobody who is enrolled")
        if site.revoked_at is not None:
            raise Problem(403, "revoked-site", f"site {name} was revoked")
        return site

    def _keep(self, progress: Progress, now: float) -> Report:
        offset = progress.sent_at - now
        if offset > self._ahead:
            raise Problem(
                409,
                "clock-ahead",
                f"the site's clock is {offset:.0f} s ahead of the control plane's; set it right",
                offset_seconds=round(offset, 3),
            )
        with self._lock:
            known = self._newest.get(progress.site)
            if known is not None and progress.sent_at <= known.progress.sent_at:
                raise Problem(
                    409, "replayed", "a report as new as this one, or newer, is already known"
                )
            report = self._counted(known, progress, now, offset)
            self._put(progress.site, report)
            return self._newest[progress.site]

    def _put(self, site: str, report: Report) -> None:
        self.version += 1
        self._newest[site] = replace(report, version=self.version)
        self._unwritten.add(site)

    @staticmethod
    def _counted(known: Report | None, progress: Progress, now: float, offset: float) -> Report:
        """The report with the restarts of its trainer, seen by a start time that changed."""
        started = progress.health.started_at
        if known is None:
            return Report(progress, now, offset, started)
        again = started > 0 and known.trainer_started_at > 0 and started != known.trainer_started_at
        return Report(
            progress,
            now,
            offset,
            started or known.trainer_started_at,
            known.trainer_restarts + again,
        )

    def _load(self) -> None:
        with self._database.reading() as session:
            for row in session.query(SiteProgress):
                try:
                    progress = Progress.model_validate_json(row.body)
                except ValueError:  # written by another version
                    log.warning(
                        "site %s: its last report cannot be read; waiting for one", row.site
                    )
                    continue
                self._newest[row.site] = Report(
                    progress,
                    row.received_at,
                    row.clock_offset,
                    row.trainer_started_at,
                    row.trainer_restarts,
                )


class Bell:
    """Wakes every open stream when something happened; may be rung from any thread."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Event] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.closing = False

    @property
    def streams(self) -> int:
        """How many are listening."""
        return len(self._waiting)

    def join(self) -> asyncio.Event:
        """Begin to listen; to be given to `leave` at the end."""
        self._loop = asyncio.get_running_loop()
        waiter = asyncio.Event()
        self._waiting.add(waiter)
        return waiter

    def leave(self, waiter: asyncio.Event) -> None:
        """Stop listening."""
        self._waiting.discard(waiter)

    def ring(self) -> None:
        """Wake the listeners."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake)

    def close(self) -> None:
        """Tell the listeners to end."""
        self.closing = True
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiting:
            waiter.set()


def _claimed_site(header: bytes) -> str:
    """The site that a header says it is from: only to choose the key that then checks it."""
    try:
        return Progress.model_validate_json(header).site
    except ValueError as error:
        raise ProtocolError("not a valid report") from error
