"""Certificates, refusals, revocations, audit counts."""

from typing import Final

from .common import BAD, FAULTS
from .panels import Dashboard, Panel, Row, now, query

SECURITY: Final = Dashboard(
    uid="fedward-security",
    title="fedward / Security",
    help="Certificates, refusals, revocations, audit counts.",
    annotations=(FAULTS,),
    rows=(
        Row(
            "Certificates",
            (
                Panel(
                    "Certificates are valid for",
                    (
                        now(
                            "fedward_certificate_not_after_timestamp_seconds - time()",
                            "{{certificate}}",
                        ),
                    ),
                    kind="bargauge",
                    unit="s",
                    steps=(
                        (None, "red"),
                        (86_400.0, "orange"),
                        (604_800.0, "yellow"),
                        (2_592_000.0, "green"),
                    ),
                ),
                Panel(
                    "Certificates' lives are over by",
                    (
                        now(
                            "(time() - fedward_certificate_not_before_timestamp_seconds) / "
                            "(fedward_certificate_not_after_timestamp_seconds - "
                            "fedward_certificate_not_before_timestamp_seconds)",
                            "{{certificate}}",
                        ),
                    ),
                    kind="bargauge",
                    unit="percentunit",
                    help="Renewal is due in the last third.",
                    steps=((None, "green"), (0.67, "yellow"), (0.9, "red")),
                    minimum=0,
                    maximum=1,
                ),
                Panel(
                    "The revocation list is valid for",
                    (
                        now(
                            "fedward_revocation_list_end_timestamp_seconds - time()",
                            "revocation list",
                        ),
                    ),
                    kind="stat",
                    unit="s",
                    steps=((None, "red"), (86_400.0, "orange"), (172_800.0, "green")),
                ),
            ),
        ),
        Row(
            "Enrolment",
            (
                Panel(
                    "Hospitals in the registry",
                    (now("fedward_sites_enrolled", "{{status}}"),),
                    kind="stat",
                ),
                Panel(
                    "Revoked",
                    (now("fedward_node_revoked == 1", "{{site}}"),),
                    kind="stat",
                    steps=((None, "text"),),
                    words=((1, "revoked", "orange"),),
                ),
                Panel(
                    "Revoked and still online",
                    (
                        now(
                            "fedward_node_revoked == 1 and on (site) "
                            'fedward_node_status{status="online"} == 1',
                            "{{site}}",
                        ),
                    ),
                    kind="stat",
                    steps=BAD,
                ),
            ),
        ),
        Row(
            "Refusals",
            (
                Panel(
                    "By the control plane",
                    (
                        query(
                            "sum by (surface, reason) "
                            "(increase(fedward_requests_refused_total[5m]))",
                            "{{surface}}: {{reason}}",
                        ),
                    ),
                    minimum=0,
                ),
                Panel(
                    "By the guard, per hospital",
                    (query("increase(fedward_node_refused_requests_total[5m]) > 0", "{{site}}"),),
                    minimum=0,
                    link="fedward-hospital",
                ),
                Panel(
                    "Updates that were refused",
                    (
                        query(
                            "sum by (site, reason) (increase("
                            'fedward_site_results_total{outcome="refused"}[15m])) > 0',
                            "{{site}}: {{reason}}",
                        ),
                    ),
                    minimum=0,
                    link="fedward-hospital",
                ),
            ),
        ),
        Row(
            "People",
            (
                Panel(
                    "Audit records",
                    (
                        query(
                            "sum by (action) (increase(fedward_audit_records_total[1h]))",
                            "{{action}}",
                        ),
                    ),
                    minimum=0,
                ),
                Panel(
                    "Clocks",
                    (query("fedward_node_clock_offset_seconds", "{{site}}"),),
                    unit="s",
                    link="fedward-hospital",
                ),
            ),
        ),
    ),
)
