"""One hospital: health, GPU, throughput, bytes, its losses against the rest."""

from typing import Final

from .common import BOTH, CHOOSE_SITE, CHOOSE_STUDY, FAULTS, ROUND_ENDS, SITE_FILTER, STUDY_FILTER
from .panels import Dashboard, Panel, Row, now, query

HOSPITAL: Final = Dashboard(
    uid="fedward-hospital",
    title="fedward / Hospital",
    help="One hospital: health, GPU, throughput, bytes, its losses against the rest.",
    variables=(CHOOSE_SITE, CHOOSE_STUDY),
    annotations=(ROUND_ENDS, FAULTS),
    rows=(
        Row(
            "Now",
            (
                Panel(
                    "Node",
                    (now(f"fedward_node_up{{{SITE_FILTER}}}", "{{site}}"),),
                    kind="stat",
                    words=((0, "down", "red"), (1, "up", "green")),
                    link="fedward-hospital",
                ),
                Panel(
                    "Flower says",
                    (now(f"fedward_node_status{{{SITE_FILTER}}} == 1", "{{site}}: {{status}}"),),
                    kind="stat",
                ),
                Panel(
                    "Trainer",
                    (now(f"fedward_trainer_state{{{SITE_FILTER}}} == 1", "{{site}}: {{state}}"),),
                    kind="stat",
                ),
                Panel(
                    "Last word",
                    (
                        now(
                            f"time() - fedward_node_last_report_timestamp_seconds{{{SITE_FILTER}}}",
                            "{{site}}, report",
                        ),
                        now(
                            f"time() - fedward_node_last_pull_timestamp_seconds{{{SITE_FILTER}}}",
                            "{{site}}, pull",
                        ),
                        now(
                            f"time() - fedward_node_last_heartbeat_timestamp_seconds{{{SITE_FILTER}}}",
                            "{{site}}, heartbeat",
                        ),
                    ),
                    kind="stat",
                    unit="s",
                    steps=((None, "green"), (60.0, "yellow"), (300.0, "red")),
                ),
                Panel(
                    "Clock",
                    (now(f"fedward_node_clock_offset_seconds{{{SITE_FILTER}}}", "{{site}}"),),
                    kind="stat",
                    unit="s",
                    steps=((None, "red"), (-3.0, "green"), (3.0, "red")),
                ),
                Panel(
                    "Trainer up for",
                    (
                        now(
                            f"time() - (fedward_trainer_started_timestamp_seconds{{{SITE_FILTER}}} > 0)",
                            "{{site}}",
                        ),
                    ),
                    kind="stat",
                    unit="s",
                ),
            ),
            height=4,
        ),
        Row(
            "GPU",
            (
                Panel(
                    "Memory",
                    (
                        query(
                            f"fedward_gpu_memory_used_bytes{{{SITE_FILTER}}} / "
                            f"fedward_gpu_memory_size_bytes{{{SITE_FILTER}}}",
                            "{{site}} GPU {{gpu}}",
                        ),
                    ),
                    unit="percentunit",
                    minimum=0,
                    maximum=1,
                    steps=((None, "green"), (0.97, "red")),
                ),
                Panel(
                    "In use",
                    (
                        query(
                            f"fedward_gpu_utilisation_ratio{{{SITE_FILTER}}}",
                            "{{site}} GPU {{gpu}}",
                        ),
                    ),
                    unit="percentunit",
                    minimum=0,
                    maximum=1,
                ),
                Panel(
                    "Temperature",
                    (
                        query(
                            f"fedward_gpu_temperature_celsius{{{SITE_FILTER}}}",
                            "{{site}} GPU {{gpu}}",
                        ),
                    ),
                    unit="celsius",
                    steps=((None, "green"), (87.0, "red")),
                ),
                Panel(
                    "GPUs seen",
                    (query(f"fedward_node_gpus{{{SITE_FILTER}}}", "{{site}}"),),
                    minimum=0,
                ),
            ),
        ),
        Row(
            "Host",
            (
                Panel(
                    "Processor",
                    (query(f"fedward_node_cpu_ratio{{{SITE_FILTER}}}", "{{site}}"),),
                    unit="percentunit",
                    minimum=0,
                    maximum=1,
                ),
                Panel(
                    "Memory",
                    (
                        query(f"fedward_node_memory_used_bytes{{{SITE_FILTER}}}", "{{site}}, used"),
                        query(f"fedward_node_memory_size_bytes{{{SITE_FILTER}}}", "{{site}}, all"),
                    ),
                    unit="bytes",
                    minimum=0,
                ),
                Panel(
                    "Disk free",
                    (
                        query(
                            f"fedward_node_disk_free_bytes{{{SITE_FILTER}}} / "
                            f"fedward_node_disk_size_bytes{{{SITE_FILTER}}}",
                            "{{site}}",
                        ),
                    ),
                    unit="percentunit",
                    minimum=0,
                    maximum=1,
                ),
                Panel(
                    "Trainer restarts and base model loads",
                    (
                        query(
                            f"increase(fedward_trainer_restarts_total{{{SITE_FILTER}}}[1h])",
                            "{{site}}, restarts in 1 h",
                        ),
                        query(f"fedward_trainer_base_loads{{{SITE_FILTER}}}", "{{site}}, loads"),
                    ),
                    minimum=0,
                ),
            ),
        ),
        Row(
            "Work",
            (
                Panel(
                    "Tokens per second",
                    (query(f"fedward_site_tokens_per_second{{{SITE_FILTER}}}", "{{site}}"),),
                    minimum=0,
                ),
                Panel(
                    "Seconds a round",
                    (query(f"fedward_site_round_seconds{{{BOTH}}}", "{{site}}"),),
                    unit="s",
                    minimum=0,
                ),
                Panel(
                    "Answers",
                    (
                        query(
                            "sum by (site, outcome, reason) "
                            f"(increase(fedward_site_results_total{{{BOTH}}}[15m]))",
                            "{{site}} {{outcome}} {{reason}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Sent again",
                    (query(f"increase(fedward_site_resent_total{{{BOTH}}}[15m])", "{{site}}"),),
                    minimum=0,
                ),
            ),
        ),
        Row(
            "Bytes",
            (
                Panel(
                    "Payload",
                    (
                        query(
                            "sum by (site, direction) (rate("
                            f"fedward_site_payload_bytes_total{{{BOTH}}}[5m]))",
                            "{{site}} {{direction}}",
                        ),
                    ),
                    unit="Bps",
                ),
                Panel(
                    "On the wire",
                    (
                        query(
                            f"rate(fedward_site_wire_bytes_total{{{SITE_FILTER}}}[5m])",
                            "{{site}} {{direction}}",
                        ),
                    ),
                    unit="Bps",
                ),
                Panel(
                    "Link",
                    (query(f"fedward_site_link_bytes_per_second{{{BOTH}}}", "{{site}}"),),
                    unit="Bps",
                    minimum=0,
                ),
            ),
        ),
        Row(
            "Learning, against the rest",
            (
                Panel(
                    "Held-out loss",
                    (
                        query(f"fedward_site_evaluation_loss{{{BOTH}}}", "{{site}}"),
                        query(f"fedward_evaluation_loss{{{STUDY_FILTER}}}", "all"),
                    ),
                ),
                Panel(
                    "Held-out accuracy",
                    (
                        query(f"fedward_site_evaluation_accuracy_ratio{{{BOTH}}}", "{{site}}"),
                        query(f"fedward_evaluation_accuracy_ratio{{{STUDY_FILTER}}}", "all"),
                    ),
                    unit="percentunit",
                ),
                Panel(
                    "Training loss",
                    (
                        query(f"fedward_site_train_loss{{{BOTH}}}", "{{site}}"),
                        query(f"fedward_train_loss{{{STUDY_FILTER}}}", "all"),
                    ),
                ),
                Panel(
                    "Norm of the change",
                    (
                        query(f"fedward_site_update_norm{{{BOTH}}}", "{{site}}"),
                        query(f"fedward_update_norm{{{STUDY_FILTER}}}", "all"),
                    ),
                ),
            ),
        ),
    ),
)
