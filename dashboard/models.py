"""The tables. Every event is kept as it came; the other tables are what is read from them.

    commands --> (supervisor) --> events --> studies, rounds, site_results, site_totals, counters
    nodes, progress: the newest word of each hospital     sessions, audit: people

Times are unix seconds. Counters only grow and are written in the same transaction as the event
they count, so neither a restart nor a repeated event can make them lie.
"""

from sqlalchemy import BigInteger, Double, Index, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_Number = BigInteger().with_variant(Integer, "sqlite")  # SQLite grows only INTEGER keys by itself


class Base(DeclarativeBase):
    """Common base; the types of the annotations below."""

    type_annotation_map = {int: BigInteger, float: Double, str: Text}  # noqa: RUF012


class Study(Base):
    """A study and where it is."""

    __tablename__ = "studies"

    study_id: Mapped[str] = mapped_column(String(80), primary_key=True)
    name: Mapped[str] = mapped_column(String(63))
    state: Mapped[str] = mapped_column(String(16), index=True)
    settings: Mapped[str]  # StudySettings as JSON
    submitted_at: Mapped[float] = mapped_column(index=True)
    started_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    stop_requested_at: Mapped[float | None]
    flower_run_id: Mapped[str] = mapped_column(String(40), default="")
    attempt: Mapped[int] = mapped_column(default=0)
    interruptions: Mapped[int] = mapped_column(default=0)
    rounds_total: Mapped[int] = mapped_column(default=0)
    round: Mapped[int] = mapped_column(default=0)  # the newest round that started
    rounds_done: Mapped[int] = mapped_column(default=0)
    deadline_at: Mapped[float | None]  # of the round that runs; None between rounds
    verdict: Mapped[str] = mapped_column(default="")
    flower_bytes_in: Mapped[int] = mapped_column(default=0)
    flower_bytes_out: Mapped[int] = mapped_column(default=0)
    forecast_bytes_up: Mapped[int | None]
    forecast_bytes_down: Mapped[int | None]
    forecast_round_seconds: Mapped[float | None]
    captured_energy: Mapped[float | None]  # of the newest aggregation, flexlora only
    last_seq: Mapped[int] = mapped_column(default=0)
    last_event_at: Mapped[float | None]


class Round(Base):
    """One round; a round that was repeated after an interruption shows its last attempt."""

    __tablename__ = "rounds"

    study_id: Mapped[str] = mapped_column(String(80), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    attempts: Mapped[int] = mapped_column(default=1)
    started_at: Mapped[float]
    deadline_at: Mapped[float]
    sites_asked: Mapped[int] = mapped_column(default=0)
    finished_at: Mapped[float | None]
    aggregated: Mapped[bool | None]
    sites_ok: Mapped[int | None]
    seconds: Mapped[float | None]
    seconds_training: Mapped[float | None]
    seconds_aggregate: Mapped[float | None]
    train_loss: Mapped[float | None]
    eval_loss: Mapped[float | None]
    eval_accuracy: Mapped[float | None]
    update_norm: Mapped[float | None]
    bytes_up: Mapped[int] = mapped_column(default=0)
    bytes_down: Mapped[int] = mapped_column(default=0)


class SiteRound(Base):
    """What one site did in one round; `task` is prepare, train, final or lone."""

    __tablename__ = "site_results"

    study_id: Mapped[str] = mapped_column(String(80), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    task: Mapped[str] = mapped_column(String(8), primary_key=True)
    site: Mapped[str] = mapped_column(String(63), primary_key=True)
    at: Mapped[float]
    outcome: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(32))
    weight: Mapped[float] = mapped_column(default=0.0)
    bytes_up: Mapped[int] = mapped_column(default=0)
    bytes_down: Mapped[int] = mapped_column(default=0)
    seconds: Mapped[float] = mapped_column(default=0.0)
    seconds_work: Mapped[float] = mapped_column(default=0.0)
    steps: Mapped[int] = mapped_column(default=0)
    tokens: Mapped[int] = mapped_column(default=0)
    resent: Mapped[int] = mapped_column(default=0)
    train_loss: Mapped[float | None]
    update_norm: Mapped[float | None]
    eval_loss: Mapped[float | None]
    eval_accuracy: Mapped[float | None]

    __table_args__ = (Index("site_results_by_site", "study_id", "site", "task", "round"),)


class SiteTotal(Base):
    """One site in one study: the sums, and its newest numbers."""

    __tablename__ = "site_totals"

    study_id: Mapped[str] = mapped_column(String(80), primary_key=True)
    site: Mapped[str] = mapped_column(String(63), primary_key=True)
    round: Mapped[int] = mapped_column(default=0)
    outcome: Mapped[str] = mapped_column(String(16), default="")
    reason: Mapped[str | None] = mapped_column(String(32))
    train_examples: Mapped[int] = mapped_column(default=0)
    heldout_examples: Mapped[int] = mapped_column(default=0)
    data_fingerprint: Mapped[str | None] = mapped_column(String(64))
    rounds_ok: Mapped[int] = mapped_column(default=0)
    rounds_missed: Mapped[int] = mapped_column(default=0)
    bytes_up: Mapped[int] = mapped_column(default=0)
    bytes_down: Mapped[int] = mapped_column(default=0)
    raw_bytes_up: Mapped[int] = mapped_column(default=0)
    raw_bytes_down: Mapped[int] = mapped_column(default=0)
    train_loss: Mapped[float | None]
    eval_loss: Mapped[float | None]
    eval_accuracy: Mapped[float | None]
    base_accuracy: Mapped[float | None]
    final_accuracy: Mapped[float | None]
    lone_accuracy: Mapped[float | None]
    update_norm: Mapped[float | None]
    seconds: Mapped[float | None]
    tokens_per_second: Mapped[float | None]
    link_bytes_per_second: Mapped[float | None]


class StoredEvent(Base):
    """An event as it came, in the order in which it came."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(_Number, primary_key=True, autoincrement=True)
    study_id: Mapped[str] = mapped_column(String(80))
    seq: Mapped[int]
    at: Mapped[float]
    received_at: Mapped[float]
    kind: Mapped[str] = mapped_column(String(24))
    site: Mapped[str | None] = mapped_column(String(63))
    body: Mapped[str]

    __table_args__ = (
        Index("events_once", "study_id", "seq", unique=True),
        Index("events_by_site", "site", "id"),
        {"sqlite_autoincrement": True},  # an id is never given twice, so a stream can resume by it
    )


class StoredCommand(Base):
    """What the supervisor was asked to do."""

    __tablename__ = "commands"

    id: Mapped[int] = mapped_column(_Number, primary_key=True, autoincrement=True)
    action: Mapped[str] = mapped_column(String(8))
    study_id: Mapped[str] = mapped_column(String(80), index=True)
    at: Mapped[float]

    __table_args__ = ({"sqlite_autoincrement": True},)


class Node(Base):
    """The newest snapshot of a hospital's node.

    The guard's counters restart with the SuperLink; `*_base` holds what earlier epochs counted.
    """

    __tablename__ = "nodes"

    site: Mapped[str] = mapped_column(String(63), primary_key=True)
    node_id: Mapped[str] = mapped_column(String(40), default="")
    status: Mapped[str] = mapped_column(String(16))
    received_at: Mapped[float]
    last_heartbeat_at: Mapped[float | None]
    last_pull_at: Mapped[float | None]
    wire_epoch: Mapped[float] = mapped_column(default=0.0)
    wire_in: Mapped[int] = mapped_column(default=0)
    wire_out: Mapped[int] = mapped_column(default=0)
    refused: Mapped[int] = mapped_column(default=0)
    wire_in_base: Mapped[int] = mapped_column(default=0)
    wire_out_base: Mapped[int] = mapped_column(default=0)
    refused_base: Mapped[int] = mapped_column(default=0)


class SiteProgress(Base):
    """The newest report of a hospital's link."""

    __tablename__ = "progress"

    site: Mapped[str] = mapped_column(String(63), primary_key=True)
    sent_at: Mapped[float]
    received_at: Mapped[float]
    clock_offset: Mapped[float]
    body: Mapped[str]  # Progress as JSON
    trainer_started_at: Mapped[float] = mapped_column(default=0.0)
    trainer_restarts: Mapped[int] = mapped_column(default=0)


class Counter(Base):
    """A sum that only grows; `labels` is written as Prometheus writes it."""

    __tablename__ = "counters"

    metric: Mapped[str] = mapped_column(String(80), primary_key=True)
    labels: Mapped[str] = mapped_column(String(320), primary_key=True)
    study_id: Mapped[str] = mapped_column(String(80), index=True, default="")
    value: Mapped[float]


class BrowserSession(Base):
    """A logged-in browser; neither its cookie nor the token is kept, only their digests."""

    __tablename__ = "sessions"

    id_digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    token_digest: Mapped[str] = mapped_column(String(64))
    csrf: Mapped[str] = mapped_column(String(64))
    expires_at: Mapped[float] = mapped_column(index=True)


class Audit(Base):
    """Who did what: log-ins, submissions, stops, refusals."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(_Number, primary_key=True, autoincrement=True)
    at: Mapped[float]
    actor: Mapped[str] = mapped_column(String(80))
    action: Mapped[str] = mapped_column(String(40))
    subject: Mapped[str] = mapped_column(String(80))
    address: Mapped[str] = mapped_column(String(64))
