"""What the aggregator tells the control plane: one immutable record per thing that happened.

Events are numbered per study (`seq`, from 1, no holes). The aggregator writes each to its journal
before it acts on it and sends it until the control plane has it; the control plane keeps one of
each (study_id, seq). So no event is lost or doubled when either is killed.
"""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, TypeAdapter

from .messages import Count, Evaluation, Fraction, Frozen, Health, Seconds, Timing, Training
from .states import Reason, SiteOutcome, StudyState
from .study import Name, Sha256, StudyId, StudySettings


class _Event(Frozen):
    study_id: StudyId
    seq: Annotated[int, Field(ge=1)]
    at: Annotated[FiniteFloat, Field(ge=0)]  # unix seconds, aggregator's clock


class StudyQueued(_Event):
    """The supervisor has the study."""

    kind: Literal["study_queued"] = "study_queued"
    settings: StudySettings


class StudyStarted(_Event):
    """A ServerApp began (or, with from_round > 0, resumed after a checkpoint)."""

    kind: Literal["study_started"] = "study_started"
    flower_run_id: str
    from_round: Count = 0
    attempt: Count = 1


class SitePrepared(_Event):
    """A site answered prepare (round 0), or could not."""

    kind: Literal["site_prepared"] = "site_prepared"
    site: Name
    outcome: SiteOutcome
    reason: Reason | None = None
    train_examples: Count = 0
    heldout_examples: Count = 0
    data_fingerprint: Sha256 | None = None  # keyed per site and study; see Description
    bytes_up: Count = 0
    bytes_down: Count = 0
    codec_up: str = ""  # of the first adapter, where this reply carried it
    evaluation: Evaluation | None = None  # of the base model
    timing: Timing = Timing()
    seconds: Seconds = 0.0  # request made to reply read, at the aggregator
    health: Health | None = None


class SiteForecast(Frozen):
    """What one round will cost one site; None is what nothing is known about yet."""

    site: Name
    bytes_up: Count
    bytes_down: Count
    seconds: Seconds | None = None  # work and transfer
    link_bytes_per_second: Seconds | None = None
    memory_bytes: Count = 0  # beside the base model and the activations, which a batch decides
    memory_free_bytes: Count | None = None


class StudyForecast(_Event):
    """What the study will cost, told before its first round; payload bytes over all rounds."""

    kind: Literal["study_forecast"] = "study_forecast"
    sites: tuple[SiteForecast, ...]
    bytes_up: Count
    bytes_down: Count
    seconds_round: Seconds | None = None
    memory_bytes: Count = 0  # of the aggregator's process
    memory_free_bytes: Count = 0
    disk_bytes: Count = 0  # of the aggregator's state
    disk_free_bytes: Count = 0
    warnings: tuple[Annotated[str, Field(max_length=300)], ...] = ()


class RoundStarted(_Event):
    """Requests of a round are on their way to these sites."""

    kind: Literal["round_started"] = "round_started"
    round: Count
    sites: tuple[Name, ...]
    deadline_at: FiniteFloat


class SiteResult(_Event):
    """What became of one site in one round."""

    kind: Literal["site_result"] = "site_result"
    round: Count
    site: Name
    outcome: SiteOutcome
    reason: Reason | None = None
    weight: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    bytes_up: Count = 0
    bytes_down: Count = 0
    raw_bytes_up: Count = 0  # what float32 without a codec would have cost
    raw_bytes_down: Count = 0
    codec_up: str = ""
    codec_down: str = ""
    training: Training | None = None
    evaluation: Evaluation | None = None  # of the adapter the round began with
    timing: Timing = Timing()
    seconds: Seconds = 0.0  # request made to reply read, at the aggregator
    resent: Count = 0
    health: Health | None = None


class RoundFinished(_Event):
    """A round ended: aggregated, or without enough sites."""

    kind: Literal["round_finished"] = "round_finished"
    round: Count
    aggregated: bool
    sites_ok: Count
    seconds: Seconds
    seconds_training: Seconds  # the slowest site's own work: training and evaluation
    seconds_aggregate: Seconds
    train_loss: FiniteFloat | None = None
    evaluation: Evaluation | None = None  # summed over sites, of the adapter it began with
    update_norm: FiniteFloat | None = None
    captured_energy: Fraction | None = None  # flexlora: of the product's, by the study's rank
    control_norm: FiniteFloat | None = None  # scaffold: of the server's control variate
    merge_norm: FiniteFloat | None = None  # fedex, flora: of what was added to the base


class StudyEvaluated(_Event):
    """The final adapter's numbers at one site."""

    kind: Literal["study_evaluated"] = "study_evaluated"
    site: Name
    evaluation: Evaluation
    bytes_up: Count = 0
    bytes_down: Count = 0
    codec_down: str = ""


class LoneEvaluated(_Event):
    """What one site alone would have reached with the same steps."""

    kind: Literal["lone_evaluated"] = "lone_evaluated"
    site: Name
    evaluation: Evaluation
    training: Training
    bytes_up: Count = 0
    bytes_down: Count = 0
    codec_down: str = ""


class StudyInterrupted(_Event):
    """The ServerApp or the SuperLink died; the study goes on from its last checkpoint."""

    kind: Literal["study_interrupted"] = "study_interrupted"
    last_round: Count
    cause: str = Field(max_length=200)


class StudyEnded(_Event):
    """The study's own verdict, which Flower's run status does not give."""

    kind: Literal["study_ended"] = "study_ended"
    state: StudyState
    rounds: Count
    verdict: str = Field(max_length=500)
    flower_bytes_in: Count = 0  # Flower's own totals over the study's runs
    flower_bytes_out: Count = 0


Event = Annotated[
    StudyQueued
    | StudyStarted
    | SitePrepared
    | StudyForecast
    | RoundStarted
    | SiteResult
    | RoundFinished
    | StudyEvaluated
    | LoneEvaluated
    | StudyInterrupted
    | StudyEnded,
    Field(discriminator="kind"),
]

EVENT: TypeAdapter[Event] = TypeAdapter(Event)
EVENTS: TypeAdapter[list[Event]] = TypeAdapter(list[Event])
