"""Filters and marks that several dashboards share."""

from typing import Final

OF_STUDY: Final = 'study=~"$study"'
OF_SITE: Final = 'site=~"$site"'
BOTH: Final = f"{OF_STUDY},{OF_SITE}"
BAD: Final = ((None, "green"), (1.0, "red"))

CHOOSE_STUDY: Final = ("study", "fedward_study_state")
CHOOSE_SITE: Final = ("site", "fedward_node_revoked")

ROUND_ENDS: Final = (
    "round ended",
    f"increase(fedward_rounds_total{{{OF_STUDY}}}[20s]) > 0",
    "blue",
)
FAULTS: Final = ("alert", 'ALERTS{alertstate="firing",alertname=~"Fedward.*"}', "red")
