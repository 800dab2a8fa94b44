"""What the API answers with: frozen models, so that OpenAPI and the code cannot disagree."""

from typing import Any, Generic, TypeVar

from pydantic import Field

from protocol.control import Role
from protocol.events import Event
from protocol.messages import Frozen, Progress
from protocol.states import Reason, SiteOutcome, StudyState
from protocol.study import StudySettings

Item = TypeVar("Item")


class Page(Frozen, Generic[Item]):
    """A part of a list; ask again with the cursor in `next` for the part after it."""

    items: list[Item]
    next: str | None = Field(
        default=None, description="give it back as `after`; null: nothing is left"
    )


class StudyBrief(Frozen):
    """A study in a list."""

    study_id: str
    name: str
    state: StudyState
    round: int = Field(description="newest round that started")
    rounds_done: int
    rounds_total: int
    submitted_at: float
    started_at: float | None
    ended_at: float | None
    deadline_at: float | None = Field(description="of the round that runs; null between rounds")
    remaining_seconds: float | None = Field(description="forecast from the last ten rounds")
    stop_requested_at: float | None
    interruptions: int
    verdict: str
    train_loss: float | None
    eval_loss: float | None
    eval_accuracy: float | None
    bytes_up: int
    bytes_down: int


class SiteView(Frozen):
    """One site in one study: sums and newest numbers."""

    site: str
    round: int
    outcome: str
    reason: Reason | None
    train_examples: int
    heldout_examples: int
    data_fingerprint: str | None = Field(
        description="keyed by the hospital for this study alone: another value is other data"
    )
    rounds_ok: int
    rounds_missed: int
    bytes_up: int
    bytes_down: int
    raw_bytes_up: int
    raw_bytes_down: int
    train_loss: float | None
    eval_loss: float | None
    eval_accuracy: float | None
    base_accuracy: float | None
    final_accuracy: float | None
    lone_accuracy: float | None
    seconds: float | None
    tokens_per_second: float | None
    link_bytes_per_second: float | None


class SiteRoundView(Frozen):
    """What one site did in one round."""

    round: int
    site: str
    task: str = Field(examples=["train"], description="prepare, train, final or lone")
    at: float
    outcome: SiteOutcome
    reason: Reason | None
    weight: float
    bytes_up: int
    bytes_down: int
    seconds: float
    seconds_work: float
    steps: int
    tokens: int
    resent: int
    train_loss: float | None
    update_norm: float | None
    eval_loss: float | None
    eval_accuracy: float | None


class RoundView(Frozen):
    """One round; repeated after an interruption, it shows its last attempt."""

    round: int
    attempts: int
    started_at: float
    deadline_at: float
    sites_asked: int
    finished_at: float | None
    aggregated: bool | None
    sites_ok: int | None
    seconds: float | None
    seconds_training: float | None
    seconds_aggregate: float | None
    train_loss: float | None
    eval_loss: float | None
    eval_accuracy: float | None
    update_norm: float | None
    bytes_up: int
    bytes_down: int
    sites: list[SiteRoundView] = Field(default=[], description="empty unless asked for")


class StudyDetail(StudyBrief):
    """A study in full: settings, the newest rounds and every site."""

    settings: StudySettings
    flower_run_id: str
    attempt: int
    flower_bytes_in: int
    flower_bytes_out: int
    forecast_bytes_up: int | None = Field(description="told before round 1, over all rounds")
    forecast_bytes_down: int | None
    forecast_round_seconds: float | None
    last_seq: int
    last_event_at: float | None
    rounds: list[RoundView] = Field(description="the newest ten, oldest first")
    sites: list[SiteView]


class Curves(Frozen):
    """Columns for charts: at most `points` rounds, evenly chosen, the newest always among them."""

    round: list[int]
    train_loss: list[float | None]
    eval_loss: list[float | None]
    eval_accuracy: list[float | None]
    bytes_up: list[int]
    bytes_down: list[int]
    seconds: list[float | None]


class NodeView(Frozen):
    """A hospital: enrolment, Flower's word, the guard's counters, its own newest report."""

    site: str
    enrolled: bool
    revoked: bool
    up: bool = Field(description="online, and pulled or reported in the last minute")
    status: str = Field(examples=["online"], description="Flower's word")
    node_id: str
    snapshot_at: float | None
    last_heartbeat_at: float | None
    last_pull_at: float | None
    wire_bytes_in: int
    wire_bytes_out: int
    refused_requests: int
    last_report_at: float | None
    clock_offset_seconds: float | None
    trainer_restarts: int
    progress: Progress | None


class CertificateView(Frozen):
    """A certificate of the federation and its end."""

    name: str = Field(examples=["aggregator"], description="a part of the federation, or a site")
    not_after: float = Field(description="unix seconds")
    warning: int | None = Field(description="30, 7 or 1: fewer days are left; 0: it has ended")
    renew: str = Field(description="what renews it")


class EventView(Frozen):
    """An event with the cursor that a stream resumes by."""

    id: int
    received_at: float
    event: Event


class SessionView(Frozen):
    """Who the browser speaks for; `csrf` goes into X-Fedward-CSRF with every change."""

    role: Role
    csrf: str
    expires_at: float


class LogIn(Frozen):
    """A token typed into the log-in page."""

    token: str = Field(min_length=1, max_length=512, examples=["the operator's token"])


class AuditView(Frozen):
    """Who did what."""

    id: int
    at: float
    actor: str
    action: str
    subject: str
    address: str


class Ready(Frozen):
    """Whether requests can be served."""

    ready: bool
    checks: dict[str, str]
    warnings: list[str] = Field(description="what will be trouble, and is none yet")


Jsonable = dict[str, Any]
