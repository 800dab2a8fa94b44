"""A study's curves, or several studies side by side."""

from typing import Final

from .common import BAD, CHOOSE_STUDY, FAULTS, OF_STUDY, ROUND_ENDS
from .panels import Dashboard, Panel, Row, now, query

STUDY: Final = Dashboard(
    uid="fedward-study",
    title="fedward / Study",
    help="A study's curves, or several studies side by side.",
    variables=(CHOOSE_STUDY,),
    annotations=(ROUND_ENDS, FAULTS),
    rows=(
        Row(
            "Curves",
            (
                Panel(
                    "Held-out loss",
                    (query(f"fedward_evaluation_loss{{{OF_STUDY}}}", "{{study}}"),),
                ),
                Panel(
                    "Held-out accuracy",
                    (query(f"fedward_evaluation_accuracy_ratio{{{OF_STUDY}}}", "{{study}}"),),
                    unit="percentunit",
                ),
                Panel("Training loss", (query(f"fedward_train_loss{{{OF_STUDY}}}", "{{study}}"),)),
            ),
            height=9,
        ),
        Row(
            "Spread over hospitals",
            (
                Panel(
                    "Held-out loss: best, middle, worst",
                    tuple(
                        query(
                            f"quantile by (study) ({share}, "
                            f"fedward_site_evaluation_loss{{{OF_STUDY}}})",
                            "{{study}} " + word,
                        )
                        for share, word in ((0, "best"), (0.5, "middle"), (1, "worst"))
                    ),
                ),
                Panel(
                    "Norm of the aggregated change",
                    (query(f"fedward_update_norm{{{OF_STUDY}}}", "{{study}}"),),
                ),
                Panel(
                    "Share of the product that the rank keeps",
                    (query(f"fedward_captured_energy_ratio{{{OF_STUDY}}}", "{{study}}"),),
                    unit="percentunit",
                    help="Of flexlora: where it is low, a larger adapter.rank would learn more.",
                ),
                Panel(
                    "Round duration",
                    (
                        query(
                            f"sum by (le) (increase("
                            f"fedward_round_duration_seconds_bucket{{{OF_STUDY}}}[5m]))",
                            "{{le}}",
                        ),
                    ),
                    kind="heatmap",
                    unit="s",
                ),
            ),
        ),
        Row(
            "Comparison",
            (
                Panel(
                    "Studies",
                    (
                        now(f"fedward_study_round{{{OF_STUDY}}}"),
                        now(f"fedward_evaluation_loss{{{OF_STUDY}}}"),
                        now(f"fedward_evaluation_accuracy_ratio{{{OF_STUDY}}}"),
                        now(f"sum by (study) (fedward_site_payload_bytes_total{{{OF_STUDY}}})"),
                        now(f"sum by (study) (fedward_study_flower_bytes{{{OF_STUDY}}})"),
                    ),
                    kind="table",
                    help="Round, loss, accuracy, payload bytes, Flower's own bytes.",
                ),
                Panel(
                    "Forecast and fact",
                    (
                        now(f"sum by (study) (fedward_study_forecast_bytes{{{OF_STUDY}}})"),
                        now(f"sum by (study) (fedward_site_payload_bytes_total{{{OF_STUDY}}})"),
                        now(f"fedward_study_forecast_round_seconds{{{OF_STUDY}}}"),
                        now(
                            f"sum by (study) (fedward_round_duration_seconds_sum{{{OF_STUDY}}}) / "
                            f"sum by (study) (fedward_round_duration_seconds_count{{{OF_STUDY}}})"
                        ),
                    ),
                    kind="table",
                    help="Bytes foretold for all rounds, bytes so far, seconds a round foretold, "
                    "seconds a round so far.",
                ),
                Panel(
                    "Rounds by result",
                    (
                        query(
                            f"increase(fedward_rounds_total{{{OF_STUDY}}}[1h])",
                            "{{study}} {{result}}",
                        ),
                    ),
                ),
                Panel(
                    "Interruptions",
                    (now(f"fedward_study_interruptions_total{{{OF_STUDY}}}", "{{study}}"),),
                    kind="stat",
                    steps=BAD,
                ),
                Panel(
                    "Newest event",
                    (
                        now(
                            f"time() - fedward_study_last_event_timestamp_seconds{{{OF_STUDY}}}",
                            "{{study}}",
                        ),
                    ),
                    kind="stat",
                    unit="s",
                ),
            ),
            height=7,
        ),
    ),
)
