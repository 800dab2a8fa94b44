"""The control plane's parts in one object, and the little work that is not a request's."""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence

from sqlalchemy.orm import Session

from protocol.control import NodeSnapshot

from .access import Access
from .database import Database
from .enrolled import Enrolled
from .live import FLUSH_SECONDS, Bell, Reports
from .models import Node
from .settings import ControlPlaneSettings
from .tokens import Tokens

log = logging.getLogger(__name__)


class Plane:
    """Everything a request may need.

    Raises:
        SettingsError: the database, the tokens or the registry cannot be used.
    """

    def __init__(
        self, settings: ControlPlaneSettings, each_second: Callable[[], object] = lambda: None
    ) -> None:
        """`each_second` is called for as long as the plane is up, such as to look for new files."""
        self.settings = settings
        self._each_second = each_second
        self.enrolled = Enrolled(settings.registry)
        self.tokens = Tokens(settings.access.tokens)
        settings.state.mkdir(parents=True, exist_ok=True)
        self.database = Database(settings.database_url, settings.database.password)
        self.access = Access(
            self.database,
            self.tokens,
            hours=settings.access.session_hours,
            failures_per_minute=settings.access.failures_per_minute,
        )
        self.reports = Reports(
            self.database, self.enrolled, ahead_seconds=settings.limits.clock_ahead_seconds
        )
        self.bell = Bell()
        self.aggregator_seen_at = time.time()  # silence counts from our start
        # /metrics: each study's part as it was rendered, and after which of its events.
        self.rendered: dict[str, tuple[int, dict[str, str]]] = {}
        self._ended = threading.Event()
        self._flusher = threading.Thread(target=self._flush, name="flush", daemon=True)

    def start(self) -> None:
        """Begin the work that is done once a second."""
        self._flusher.start()

    def close(self) -> None:
        """Write what is still in memory, and end."""
        self._ended.set()
        if self._flusher.is_alive():
            self._flusher.join(timeout=5)
        self._flush_once()
        self.database.close()

    def hear_aggregator(self) -> None:
        """Note that the aggregator spoke: silence is an alert of its own."""
        self.aggregator_seen_at = time.time()

    def disk(self) -> tuple[int, int]:
        """Bytes free and in all where the state is."""
        usage = shutil.disk_usage(self.settings.state)
        return usage.free, usage.total

    def _flush(self) -> None:
        while not self._ended.wait(FLUSH_SECONDS):
            self._flush_once()
            self._each_second()

    def _flush_once(self) -> None:
        try:
            self.reports.flush()
            self.access.flush()
        except Exception:
            log.exception("cannot write reports to the database")


def store_nodes(session: Session, snapshots: Sequence[NodeSnapshot], now: float) -> int:
    """Keep each node's newest snapshot; its counters survive the SuperLink's restarts."""
    for snapshot in snapshots:
        row = session.get(Node, snapshot.site)
        if row is None:
            row = Node(
                site=snapshot.site,
                wire_in_base=0,
                wire_out_base=0,
                refused_base=0,
                wire_epoch=snapshot.wire_epoch,
            )
            session.add(row)
        elif row.wire_epoch != snapshot.wire_epoch:
            row.wire_in_base += row.wire_in
            row.wire_out_base += row.wire_out
            row.refused_base += row.refused
            row.wire_epoch = snapshot.wire_epoch
        row.node_id, row.status, row.received_at = snapshot.node_id, snapshot.status, now
        row.last_heartbeat_at = snapshot.last_heartbeat_at
        row.last_pull_at = snapshot.last_pull_at
        row.wire_in, row.wire_out = snapshot.wire_bytes_in, snapshot.wire_bytes_out
        row.refused = snapshot.refused_requests
    return len(snapshots)
