"""How the parts speak to the control plane: routes, bodies and roles, spelled once.

The control plane never calls anybody. The aggregator's supervisor sends events and node snapshots
and asks for commands; hospitals' links send signed progress through the aggregator's one port; the
CLI submits, reads and stops.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, FiniteFloat

from .messages import Count, Frozen
from .study import Name, StudyId, StudySettings

API: Final = "/api/v1"
INGEST_EVENTS: Final = f"{API}/ingest/events"  # POST list[Event] -> Stored; role aggregator
INGEST_NODES: Final = f"{API}/ingest/nodes"  # POST list[NodeSnapshot] -> Stored; role aggregator
COMMANDS: Final = f"{API}/ingest/commands"  # GET ?after=N -> list[Command]; role aggregator
STUDIES: Final = f"{API}/studies"  # GET, POST Submission -> Submitted; {id}, {id}/stop
NODES: Final = f"{API}/nodes"
EVENTS: Final = f"{API}/events"  # GET ?study=&after=
EVENT_STREAM: Final = f"{API}/events/stream"  # server-sent events
SITE_PROGRESS: Final = "/v1/site/progress"  # POST, a framed Progress envelope signed by the site

FLEET_PREFIX: Final = "/v1/fleet/"
SITE_PREFIX: Final = "/v1/site/"
MAX_PROGRESS_BYTES: Final = 64 << 10


class Role(StrEnum):
    """Who a bearer token speaks for. Each role's token is one file in the tokens folder."""

    COORDINATOR = "coordinator"  # may start and stop studies
    OPERATOR = "operator"  # may read
    AGGREGATOR = "aggregator"  # may send events and read commands


class Submission(Frozen):
    """A study to run."""

    settings: StudySettings


class Submitted(Frozen):
    """The study's identity from now on."""

    study_id: StudyId


class Stored(Frozen):
    """How many records were new."""

    stored: Count


class Command(Frozen):
    """What the supervisor is to do; `id` grows by one, so `after` asks for the rest."""

    id: Annotated[int, Field(ge=1)]
    action: Literal["start", "stop"]
    study_id: StudyId
    settings: StudySettings | None = None  # with start


class NodeSnapshot(Frozen):
    """What Flower and the guard know of one node at one moment."""

    site: Name
    node_id: str = ""  # Flower's; "" while not registered
    status: Literal["unregistered", "registered", "online", "offline"]
    last_heartbeat_at: FiniteFloat | None = None
    last_pull_at: FiniteFloat | None = None
    wire_bytes_in: Count = 0  # HTTP bytes from the site since the SuperLink started
    wire_bytes_out: Count = 0
    wire_epoch: FiniteFloat = 0.0  # when these counters began (they restart with the SuperLink)
    refused_requests: Count = 0
