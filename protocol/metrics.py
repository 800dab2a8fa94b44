"""Every metric of the control plane: name, unit, meaning and labels, spelled once.

Names follow OpenMetrics: base units in the name, `_total` on counters, `_timestamp_seconds` on
moments. Labels are bounded: sites and studies by what is enrolled and kept, everything else by an
enumeration in this package. `direction` is `up` (site to aggregator) or `down`.
"""

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True)
class Metric:
    """One metric family."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


ALL: Final[dict[str, Metric]] = {}


def _add(
    kind: Literal["gauge", "counter", "histogram"], name: str, text: str, *labels: str
) -> Metric:
    metric = Metric(f"fedward_{name}", kind, text, labels)
    ALL[metric.name] = metric
    return metric


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return _add("gauge", name, text, *labels)


def _counter(name: str, text: str, *labels: str) -> Metric:
    return _add("counter", name, text, *labels)


def _histogram(name: str, text: str, *labels: str) -> Metric:
    return _add("histogram", name, text, *labels)


# Studies
STUDY_STATE = _gauge(
    "study_state", "1 for the state the study is in, 0 for the others.", "study", "state"
)
STUDY_PLANNED_ROUNDS = _gauge("study_planned_rounds", "Rounds the study asks for.", "study")
STUDY_ROUND = _gauge("study_round", "Newest round that started; 0 before the first.", "study")
STUDY_MINIMUM_SITES = _gauge("study_minimum_sites", "Updates that a round needs.", "study")
STUDY_REMAINING = _gauge(
    "study_remaining_seconds",
    "Forecast: rounds left times the mean of the last ten rounds.",
    "study",
)
STUDY_LAST_EVENT = _gauge(
    "study_last_event_timestamp_seconds", "When the study's newest event happened.", "study"
)
STUDY_INTERRUPTIONS = _counter(
    "study_interruptions_total", "Times the supervisor resumed the study after a crash.", "study"
)
STUDY_FLOWER_BYTES = _gauge(
    "study_flower_bytes",
    "Flower's own byte totals of the study's runs; 0 until it ends.",
    "study",
    "direction",
)
STUDY_FORECAST_BYTES = _gauge(
    "study_forecast_bytes",
    "Payload bytes of all rounds, as told before the first.",
    "study",
    "direction",
)
STUDY_FORECAST_ROUND = _gauge(
    "study_forecast_round_seconds", "Length of a round, as told before the first.", "study"
)

# Rounds
ROUND_RUNNING = _gauge("round_running", "1 while a round waits for its sites.", "study")
ROUND_STARTED = _gauge("round_started_timestamp_seconds", "When the newest round started.", "study")
ROUND_DEADLINE = _gauge(
    "round_deadline_timestamp_seconds", "When the newest round's late sites are given up.", "study"
)
ROUND_SITES = _gauge(
    "round_sites",
    "Sites of the newest round by outcome; pending ones have not answered yet.",
    "study",
    "outcome",
)
ROUNDS = _counter(
    "rounds_total",
    "Rounds that ended: aggregated, or skipped for want of sites.",
    "study",
    "result",
)
ROUND_DURATION = _histogram(
    "round_duration_seconds", "Length of a round, wall clock at the aggregator.", "study"
)
PHASE_DURATION = _histogram(
    "phase_duration_seconds",
    "Length of a round's parts: at each site queue, load, decode, train, evaluate, encode and "
    "transfer (both ways), and aggregate.",
    "study",
    "phase",
)

# What is learnt
TRAIN_LOSS = _gauge("train_loss", "Newest round's training loss over all sites, nats.", "study")
EVALUATION_LOSS = _gauge(
    "evaluation_loss", "Newest held-out loss over all sites, nats a token.", "study"
)
EVALUATION_ACCURACY = _gauge(
    "evaluation_accuracy_ratio", "Newest held-out accuracy over all sites.", "study"
)
CAPTURED_ENERGY = _gauge(
    "captured_energy_ratio",
    "flexlora: share of the exact product that the study's rank kept in the newest round.",
    "study",
)
UPDATE_NORM = _gauge("update_norm", "L2 norm of the newest aggregated change.", "study")
SITE_TRAIN_LOSS = _gauge("site_train_loss", "The site's newest training loss.", "study", "site")
SITE_EVALUATION_LOSS = _gauge(
    "site_evaluation_loss", "The site's newest held-out loss.", "study", "site"
)
SITE_EVALUATION_ACCURACY = _gauge(
    "site_evaluation_accuracy_ratio", "The site's newest held-out accuracy.", "study", "site"
)
SITE_UPDATE_NORM = _gauge(
    "site_update_norm", "L2 norm of the site's newest change.", "study", "site"
)

# What a site did and what it cost
SITE_RESULTS = _counter(
    "site_results_total",
    "Answers by outcome; reason says why one was refused, failed or is missing.",
    "study",
    "site",
    "outcome",
    "reason",
)
SITE_MISSED = _counter(
    "site_missed_rounds_total",
    "Rounds in which the site was late, lost, refused or failed; 0 from the start.",
    "study",
    "site",
)
SITE_RESENT = _counter(
    "site_resent_total", "Requests sent again after a node restarted.", "study", "site"
)
SITE_ROUND = _gauge(
    "site_round_seconds", "Request made to reply read, newest round.", "study", "site"
)
SITE_PAYLOAD_BYTES = _counter(
    "site_payload_bytes_total",
    "Bytes of messages: header, signature and encoded adapter; codec none carried no adapter.",
    "study",
    "site",
    "direction",
    "codec",
)
SITE_RAW_BYTES = _counter(
    "site_raw_bytes_total",
    "What the same adapters would have cost as float32 without a codec.",
    "study",
    "site",
    "direction",
)
SITE_WIRE_BYTES = _counter(
    "site_wire_bytes_total",
    "HTTP bytes between the site's node and the aggregator, counted at the guard.",
    "site",
    "direction",
)
SITE_LINK_RATE = _gauge(
    "site_link_bytes_per_second",
    "Payload of the newest round over the seconds that were not work.",
    "study",
    "site",
)
SITE_PROGRESS = _gauge(
    "site_progress_ratio", "Steps done of the round's steps, from the link's report.", "site"
)
SITE_TOKEN_RATE = _gauge("site_tokens_per_second", "Training speed now.", "site")

# Nodes
NODE_UP = _gauge(
    "node_up",
    "1 while Flower calls the node online and it pulled or reported in the last minute.",
    "site",
)
NODE_STATUS = _gauge("node_status", "1 for Flower's status of the node.", "site", "status")
NODE_REVOKED = _gauge("node_revoked", "1 for a hospital whose enrolment was revoked.", "site")
NODE_HEARTBEAT = _gauge(
    "node_last_heartbeat_timestamp_seconds", "The node's newest heartbeat.", "site"
)
NODE_PULL = _gauge("node_last_pull_timestamp_seconds", "When the node last asked for work.", "site")
NODE_REPORT = _gauge(
    "node_last_report_timestamp_seconds", "When the link's newest signed report came.", "site"
)
NODE_CLOCK_OFFSET = _gauge(
    "node_clock_offset_seconds", "The site's clock minus ours, at its newest report.", "site"
)
NODE_REFUSED = _counter(
    "node_refused_requests_total", "Requests of the node that the guard refused.", "site"
)
NODE_CPU = _gauge("node_cpu_ratio", "Share of the host's CPUs in use.", "site")
NODE_MEMORY_USED = _gauge("node_memory_used_bytes", "Host memory in use.", "site")
NODE_MEMORY_SIZE = _gauge("node_memory_size_bytes", "Host memory there is.", "site")
NODE_DISK_FREE = _gauge("node_disk_free_bytes", "Free on the trainer's disk.", "site")
NODE_DISK_SIZE = _gauge("node_disk_size_bytes", "Size of the trainer's disk.", "site")
NODE_GPUS = _gauge("node_gpus", "GPUs the trainer sees.", "site")
GPU_MEMORY_USED = _gauge("gpu_memory_used_bytes", "GPU memory in use.", "site", "gpu")
GPU_MEMORY_SIZE = _gauge("gpu_memory_size_bytes", "GPU memory there is.", "site", "gpu")
GPU_UTILISATION = _gauge("gpu_utilisation_ratio", "Share of time the GPU worked.", "site", "gpu")
GPU_TEMPERATURE = _gauge("gpu_temperature_celsius", "GPU temperature.", "site", "gpu")
TRAINER_STATE = _gauge(
    "trainer_state", "1 for the state the trainer is in, 0 for the others.", "site", "state"
)
TRAINER_STARTED = _gauge(
    "trainer_started_timestamp_seconds", "When the trainer's process started.", "site"
)
TRAINER_RESTARTS = _counter(
    "trainer_restarts_total", "Times the trainer's start time changed.", "site"
)
TRAINER_BASE_LOADS = _gauge(
    "trainer_base_loads", "Times the base model was loaded since the trainer started.", "site"
)

# The aggregator and the control plane themselves
AGGREGATOR_SEEN = _gauge(
    "aggregator_last_seen_timestamp_seconds", "When the aggregator last sent or asked anything."
)
SITES_ENROLLED = _gauge("sites_enrolled", "Hospitals in the registry.", "status")
CERTIFICATE_NOT_AFTER = _gauge(
    "certificate_not_after_timestamp_seconds", "End of a certificate's validity.", "certificate"
)
CERTIFICATE_NOT_BEFORE = _gauge(
    "certificate_not_before_timestamp_seconds",
    "Beginning of a certificate's validity.",
    "certificate",
)
REVOCATION_LIST_END = _gauge(
    "revocation_list_end_timestamp_seconds",
    "When the revocation list that the edge reads must have been renewed.",
)
STATE_DISK_FREE = _gauge("state_disk_free_bytes", "Free on the control plane's disk.")
STATE_DISK_SIZE = _gauge("state_disk_size_bytes", "Size of the control plane's disk.")
EVENTS_STORED = _counter("events_stored_total", "Events kept.", "kind")
EVENT_STREAMS = _gauge("event_streams", "Live event streams open now.")
REQUESTS_REFUSED = _counter(
    "requests_refused_total",
    "Requests the control plane refused: surface is where, reason is why.",
    "surface",
    "reason",
)
AUDIT_RECORDS = _counter("audit_records_total", "Records in the audit list.", "action")

# Bucket bounds in seconds: a round on loopback takes 2 s, one with an 8B model an hour or more;
# a phase may be a millisecond.
ROUND_BUCKETS: Final = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0)
PHASE_BUCKETS: Final = (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)

# How long a node may be silent before it counts as down. An idle node pulls every 3 s; a working
# one does not pull, and its link reports every 2 s by default.
NODE_SILENT_SECONDS: Final = 60.0


def labels(**values: str) -> str:
    """A label set as the text format writes it, in the order given."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items())


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
