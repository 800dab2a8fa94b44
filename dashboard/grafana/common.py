"""Filters and marks that several dashboards share."""

from typing import Final

STUDY_FILTER: Final = 'study=~"$study"'
SITE_FILTER: Final = 'site=~"$site"'
BOTH: Final = f"{STUDY_FILTER},{SITE_FILTER}"
BAD: Final = ((None, "green"), (1.0, "red"))

CHOOSE_STUDY: Final = ("study", "fedward_study_state")
CHOOSE_SITE: Final = ("site", "fedward_node_revoked")

ROUND_ENDS: Final = (
    "round ended",
    f"increase(fedward_rounds_total{{{STUDY_FILTER}}}[20s]) > 0",
    "blue",
)
FAULTS: Final = ("alert", 'ALERTS{alertstate="firing",alertname=~"Fedward.*"}', "red")
