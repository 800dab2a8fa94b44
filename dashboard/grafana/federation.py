"""What is happening now: the round, who is in, who is late, what it costs."""

from typing import Final

from .common import CHOOSE_STUDY, FAULTS, OF_STUDY, ROUND_ENDS
from .panels import Dashboard, Panel, Row, now, query

FEDERATION: Final = Dashboard(
    uid="fedward-federation",
    title="fedward / Federation",
    help="What is happening now: the round, who is in, who is late, what it costs.",
    variables=(CHOOSE_STUDY,),
    annotations=(ROUND_ENDS, FAULTS),
    rows=(
        Row(
            "Now",
            (
                Panel(
                    "Study",
                    (now(f"fedward_study_state{{{OF_STUDY}}} == 1", "{{study}}: {{state}}"),),
                    kind="stat",
                    link="fedward-study",
                ),
                Panel(
                    "Round",
                    (
                        now(f"fedward_study_round{{{OF_STUDY}}}", "{{study}}"),
                        now(f"fedward_study_planned_rounds{{{OF_STUDY}}}", "{{study}}, planned"),
                    ),
                    kind="stat",
                ),
                Panel(
                    "A round runs",
                    (now(f"fedward_round_running{{{OF_STUDY}}}", "{{study}}"),),
                    kind="stat",
                    words=((0, "between rounds", "text"), (1, "running", "green")),
                ),
                Panel(
                    "Time left",
                    (now(f"fedward_study_remaining_seconds{{{OF_STUDY}}}", "{{study}}"),),
                    kind="stat",
                    unit="s",
                    help="Rounds left times the mean of the last ten.",
                ),
                Panel(
                    "To the deadline",
                    (
                        now(
                            f"(fedward_round_deadline_timestamp_seconds{{{OF_STUDY}}} - time())"
                            f" and fedward_round_running{{{OF_STUDY}}} == 1",
                            "{{study}}",
                        ),
                    ),
                    kind="stat",
                    unit="s",
                    steps=((None, "red"), (0.0, "yellow"), (300.0, "green")),
                ),
                Panel(
                    "Hospitals up",
                    (
                        now("sum(fedward_node_up)", "up"),
                        now('fedward_sites_enrolled{status="active"}', "enrolled"),
                    ),
                    kind="stat",
                ),
            ),
            height=4,
        ),
        Row(
            "The round",
            (
                Panel(
                    "Each hospital's steps",
                    (now("fedward_site_progress_ratio", "{{site}}"),),
                    kind="bargauge",
                    unit="percentunit",
                    minimum=0,
                    maximum=1,
                    link="fedward-hospital",
                ),
                Panel(
                    "Hospitals by outcome",
                    (query(f"fedward_round_sites{{{OF_STUDY}}}", "{{outcome}}"),),
                    stacked=True,
                    minimum=0,
                ),
                Panel(
                    "Enough hospitals",
                    (
                        query(
                            f'fedward_round_sites{{{OF_STUDY},outcome=~"ok|pending"}}',
                            "{{outcome}}",
                        ),
                        query(f"fedward_study_minimum_sites{{{OF_STUDY}}}", "needed"),
                    ),
                    minimum=0,
                ),
            ),
        ),
        Row(
            "Time",
            (
                Panel(
                    "Round duration",
                    (
                        query(
                            "histogram_quantile(0.5, sum by (le, study) (rate("
                            f"fedward_round_duration_seconds_bucket{{{OF_STUDY}}}[15m])))",
                            "{{study}}, median",
                        ),
                        query(
                            "histogram_quantile(0.95, sum by (le, study) (rate("
                            f"fedward_round_duration_seconds_bucket{{{OF_STUDY}}}[15m])))",
                            "{{study}}, 95 %",
                        ),
                    ),
                    unit="s",
                ),
                Panel(
                    "Where a round's time goes",
                    (
                        query(
                            "sum by (phase) (rate("
                            f"fedward_phase_duration_seconds_sum{{{OF_STUDY}}}[15m])) / "
                            "sum by (phase) (rate("
                            f"fedward_phase_duration_seconds_count{{{OF_STUDY}}}[15m]))",
                            "{{phase}}",
                        ),
                    ),
                    unit="s",
                    stacked=True,
                    help="Mean of each part over the hospitals; transfer is both ways.",
                ),
                Panel(
                    "Age of the running round",
                    (
                        query(
                            f"(time() - fedward_round_started_timestamp_seconds{{{OF_STUDY}}})"
                            f" * fedward_round_running{{{OF_STUDY}}}",
                            "{{study}}",
                        ),
                    ),
                    unit="s",
                    minimum=0,
                ),
            ),
        ),
        Row(
            "Cost",
            (
                Panel(
                    "Payload",
                    (
                        query(
                            "sum by (direction) (rate("
                            f"fedward_site_payload_bytes_total{{{OF_STUDY}}}[5m]))",
                            "{{direction}}",
                        ),
                    ),
                    unit="Bps",
                    minimum=0,
                ),
                Panel(
                    "On the wire",
                    (
                        query(
                            "sum by (direction) (rate(fedward_site_wire_bytes_total[5m]))",
                            "{{direction}}",
                        ),
                    ),
                    unit="Bps",
                    minimum=0,
                ),
                Panel(
                    "Payload by codec",
                    (
                        query(
                            "sum by (codec) (increase("
                            f"fedward_site_payload_bytes_total{{{OF_STUDY}}}[1h]))",
                            "{{codec}}",
                        ),
                    ),
                    unit="bytes",
                    stacked=True,
                ),
                Panel(
                    "Size against float32",
                    (
                        query(
                            "sum by (direction) (increase("
                            f"fedward_site_payload_bytes_total{{{OF_STUDY}}}[1h])) / "
                            "sum by (direction) (increase("
                            f"fedward_site_raw_bytes_total{{{OF_STUDY}}}[1h]))",
                            "{{direction}}",
                        ),
                    ),
                    unit="percentunit",
                    minimum=0,
                ),
            ),
        ),
        Row(
            "Control plane",
            (
                Panel(
                    "Aggregator heard",
                    (now("time() - fedward_aggregator_last_seen_timestamp_seconds", "ago"),),
                    kind="stat",
                    unit="s",
                    steps=((None, "green"), (15.0, "yellow"), (60.0, "red")),
                ),
                Panel(
                    "Events kept",
                    (query("sum by (kind) (rate(fedward_events_stored_total[5m]))", "{{kind}}"),),
                    unit="cps",
                ),
                Panel(
                    "Disk free",
                    (
                        now(
                            "fedward_state_disk_free_bytes / fedward_state_disk_size_bytes",
                            "free",
                        ),
                    ),
                    kind="stat",
                    unit="percentunit",
                    steps=((None, "red"), (0.1, "yellow"), (0.2, "green")),
                ),
                Panel("Open streams", (query("fedward_event_streams", "streams"),), minimum=0),
            ),
            height=6,
        ),
    ),
)
