"""Counters in the database: what /metrics says survives a restart, and no event counts twice."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import Session

from protocol.metrics import Metric, labels

from .models import Counter

_TABLE: Table = Counter.__table__  # type: ignore[assignment]


class Tally:
    """Increments gathered in one transaction and written with it."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str, str], float] = {}

    def __bool__(self) -> bool:
        return bool(self._sums)

    def add(self, metric: Metric, amount: float = 1.0, **values: str) -> None:
        """Add to one series; its labels are the metric's, in the metric's order."""
        key = (
            metric.name,
            labels(**{name: values[name] for name in metric.labels}),
            values.get("study", ""),
        )
        self._sums[key] = self._sums.get(key, 0.0) + amount

    def observe(
        self, metric: Metric, seconds: float, bounds: Iterable[float], **values: str
    ) -> None:
        """Add an observation to a histogram: one bucket (they are summed up when read)."""
        bucket = next((f"{bound:g}" for bound in bounds if seconds <= bound), "+Inf")
        own = {name: values[name] for name in metric.labels}
        study = values.get("study", "")
        for suffix, labelled, amount in (
            ("_bucket", labels(**own, le=bucket), 1.0),
            ("_sum", labels(**own), seconds),
            ("_count", labels(**own), 1.0),
        ):
            key = (metric.name + suffix, labelled, study)
            self._sums[key] = self._sums.get(key, 0.0) + amount

    def write(self, session: Session) -> None:
        """Add the gathered increments to the table, in the session's transaction."""
        if not self._sums:
            return
        rows: list[Mapping[str, Any]] = [
            {"metric": metric, "labels": labelled, "study_id": study, "value": amount}
            for (metric, labelled, study), amount in sorted(self._sums.items())
        ]
        _upsert(session.connection(), rows)
        self._sums.clear()


def _upsert(connection: Connection, rows: list[Mapping[str, Any]]) -> None:
    if connection.dialect.name == "postgresql":
        new = postgresql_insert(_TABLE)
        statement: Any = new.on_conflict_do_update(
            index_elements=["metric", "labels"],
            set_={"value": _TABLE.c.value + new.excluded.value},
        )
    else:
        lite = sqlite_insert(_TABLE)
        statement = lite.on_conflict_do_update(
            index_elements=["metric", "labels"],
            set_={"value": _TABLE.c.value + lite.excluded.value},
        )
    connection.execute(statement, rows)
