"""One hospital: health, GPU, throughput, bytes, its losses against the rest."""

from typing import Final

from .common import BOTH, CHOOSE_SITE, CHOOSE_STUDY, FAULTS, OF_SITE, OF_STUDY, ROUND_ENDS
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
                    (now(f"fedward_node_up{{{OF_SITE}}}", "{{site}}"),),
                    kind="stat",
                    words=((0, "down", "red"), (1, "up", "green")),
                    link="fedward-hospital",
                ),
                Panel(
                    "Flower says",
                    (now(f"fedward_node_status{{{OF_SITE}}} == 1", "{{site}}: {{status}}"),),
                    kind="stat",
                ),
                Panel(
                    "Trainer",
                    (now(f"fedward_trainer_state{{{OF_SITE}}} == 1", "{{site}}: {{state}}"),),
                    kind="stat",
                ),
                Panel(
                    "Last word",
                    (
                        now(
                            f"time() - fedward_node_last_report_timestamp_seconds{{{OF_SITE}}}",
                            "{{site}}, report",
                        ),
                        now(
                            f"time() - fedward_node_last_pull_timestamp_seconds{{{OF_SITE}}}",
                            "{{site}}, pull",
                        ),
                        now(
                            f"time() - fedward_node_last_heartbeat_timestamp_seconds{{{OF_SITE}}}",
                            "{{site}}, heartbeat",
                        ),
                    ),
                    kind="stat",
                    unit="s",
                    steps=((None, "green"), (60.0, "yellow"), (300.0, "red")),
                ),
                Panel(
                    "Clock",
                    (now(f"fedward_node_clock_offset_seconds{{{OF_SITE}}}", "{{site}}"),),
                    kind="stat",
                    unit="s",
                    steps=((None, "red"), (-3.0, "green"), (3.0, "red")),
                ),
                Panel(
                    "Trainer up for",
                    (
                        now(
                            "time() - "
                            f"(fedward_trainer_started_timestamp_seconds{{{OF_SITE}}} > 0)",
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
                            f"fedward_gpu_memory_used_bytes{{{OF_SITE}}} / "
                            f"fedward_gpu_memory_size_bytes{{{OF_SITE}}}",
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
                            f"fedward_gpu_utilisation_ratio{{{OF_SITE}}}",
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
                            f"fedward_gpu_temperature_celsius{{{OF_SITE}}}",
                            "{{site}} GPU {{gpu}}",
                        ),
                    ),
                    unit="celsius",
                    steps=((None, "green"), (87.0, "red")),
                ),
                Panel(
                    "GPUs seen",
                    (query(f"fedward_node_gpus{{{OF_SITE}}}", "{{site}}"),),
                    minimum=0,
                ),
            ),
        ),
        Row(
            "Host",
            (
                Panel(
                    "Processor",
                    (query(f"fedward_node_cpu_ratio{{{OF_SITE}}}", "{{site}}"),),
                    unit="percentunit",
                    minimum=0,
                    maximum=1,
                ),
                Panel(
                    "Memory",
                    (
                        query(f"fedward_node_memory_used_bytes{{{OF_SITE}}}", "{{site}}, used"),
                        query(f"fedward_node_memory_size_bytes{{{OF_SITE}}}", "{{site}}, all"),
                    ),
                    unit="bytes",
                    minimum=0,
                ),
                Panel(
                    "Disk free",
                    (
                        query(
                            f"fedward_node_disk_free_bytes{{{OF_SITE}}} / "
                            f"fedward_node_disk_size_bytes{{{OF_SITE}}}",
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
                            f"increase(fedward_trainer_restarts_total{{{OF_SITE}}}[1h])",
                            "{{site}}, restarts in 1 h",
                        ),
                        query(f"fedward_trainer_base_loads{{{OF_SITE}}}", "{{site}}, loads"),
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
                    (query(f"fedward_site_tokens_per_second{{{OF_SITE}}}", "{{site}}"),),
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
                    "Rounds missed",
                    (
                        query(
                            f"increase(fedward_site_missed_rounds_total{{{BOTH}}}[1h])", "{{site}}"
                        ),
                    ),
                    minimum=0,
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
                            f"rate(fedward_site_wire_bytes_total{{{OF_SITE}}}[5m])",
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
                        query(f"fedward_evaluation_loss{{{OF_STUDY}}}", "all"),
                    ),
                ),
                Panel(
                    "Held-out accuracy",
                    (
                        query(f"fedward_site_evaluation_accuracy_ratio{{{BOTH}}}", "{{site}}"),
                        query(f"fedward_evaluation_accuracy_ratio{{{OF_STUDY}}}", "all"),
                    ),
                    unit="percentunit",
                ),
                Panel(
                    "Training loss",
                    (
                        query(f"fedward_site_train_loss{{{BOTH}}}", "{{site}}"),
                        query(f"fedward_train_loss{{{OF_STUDY}}}", "all"),
                    ),
                ),
                Panel(
                    "Norm of the change",
                    (
                        query(f"fedward_site_update_norm{{{BOTH}}}", "{{site}}"),
                        query(f"fedward_update_norm{{{OF_STUDY}}}", "all"),
                    ),
                ),
            ),
        ),
    ),
)
