"""Every alert fires for its fault and is silent without it, as promtool's own tests see it."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from protocol.metrics import ALL

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "dashboard" / "prometheus"
RULES = PROMETHEUS / "rules" / "fedward.rules.yml"
RUNBOOKS = ROOT / "docs" / "runbooks"

RULE_LIST: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
]
DAY = 86_400


@dataclass(frozen=True)
class Case:
    """A fault: series a minute apart (promtool's notation), and the labels of the alert."""

    alert: str
    minutes: int
    fault: dict[str, str]
    healthy: dict[str, str]
    labels: dict[str, str]


CASES = [
    Case(
        "FedwardNodeDown",
        5,
        {
            "fedward_node_up{site='a'}": "0x10",
            "fedward_node_status{site='a',status='online'}": "0x10",
            "fedward_node_last_heartbeat_timestamp_seconds{site='a'}": "0x10",
        },
        {
            "fedward_node_up{site='a'}": "1x10",
            "fedward_node_status{site='a',status='online'}": "1x10",
            "fedward_node_last_heartbeat_timestamp_seconds{site='a'}": "0+60x10",
        },
        {"site": "a"},
    ),
    Case(
        "FedwardNodeWedged",
        8,
        {
            "fedward_node_up{site='a'}": "0x10",
            "fedward_node_status{site='a',status='online'}": "1x10",
        },
        {
            "fedward_node_up{site='a'}": "1x10",
            "fedward_node_status{site='a',status='online'}": "1x10",
        },
        {"site": "a", "status": "online"},
    ),
    Case(
        "FedwardNodeRefused",
        10,
        {"fedward_node_refused_requests_total{site='a'}": "0+1x10"},
        {"fedward_node_refused_requests_total{site='a'}": "7x10"},
        {"site": "a"},
    ),
    Case(
        "FedwardRevokedNodeActive",
        5,
        {
            "fedward_node_revoked{site='a'}": "1x10",
            "fedward_node_status{site='a',status='online'}": "1x10",
        },
        {
            "fedward_node_revoked{site='a'}": "1x10",
            "fedward_node_status{site='a',status='online'}": "0x10",
        },
        {"site": "a"},
    ),
    Case(
        "FedwardClockOff",
        8,
        {"fedward_node_clock_offset_seconds{site='a'}": "-4x10"},
        {"fedward_node_clock_offset_seconds{site='a'}": "-1x10"},
        {"site": "a"},
    ),
    Case(
        "FedwardTrainerBroken",
        4,
        {"fedward_trainer_state{site='a',state='broken'}": "1x10"},
        {"fedward_trainer_state{site='a',state='broken'}": "0x10"},
        {"site": "a", "state": "broken"},
    ),
    Case(
        "FedwardTrainerRestarting",
        30,
        {"fedward_trainer_restarts_total{site='a'}": "0x5 1x5 2x5 3x5 4x20"},
        {"fedward_trainer_restarts_total{site='a'}": "0x10 1x40"},
        {"site": "a"},
    ),
    Case(
        "FedwardGpuLost",
        20,
        {"fedward_node_gpus{site='a'}": "2x10 1x20"},
        {"fedward_node_gpus{site='a'}": "2x30"},
        {"site": "a"},
    ),
    Case(
        "FedwardGpuHot",
        8,
        {"fedward_gpu_temperature_celsius{site='a',gpu='0'}": "90x10"},
        {"fedward_gpu_temperature_celsius{site='a',gpu='0'}": "75x10"},
        {"site": "a", "gpu": "0"},
    ),
    Case(
        "FedwardGpuMemoryFull",
        8,
        {
            "fedward_gpu_memory_used_bytes{site='a',gpu='0'}": "99x10",
            "fedward_gpu_memory_size_bytes{site='a',gpu='0'}": "100x10",
        },
        {
            "fedward_gpu_memory_used_bytes{site='a',gpu='0'}": "60x10",
            "fedward_gpu_memory_size_bytes{site='a',gpu='0'}": "100x10",
        },
        {"site": "a", "gpu": "0"},
    ),
    Case(
        "FedwardDiskFilling",
        8,
        {
            "fedward_node_disk_free_bytes{site='a'}": "5x10",
            "fedward_node_disk_size_bytes{site='a'}": "100x10",
        },
        {
            "fedward_node_disk_free_bytes{site='a'}": "50x10",
            "fedward_node_disk_size_bytes{site='a'}": "100x10",
        },
        {"site": "a"},
    ),
    Case(
        "FedwardDiskFilling",
        130,
        {
            "fedward_node_disk_free_bytes{site='a'}": "29-0.05x140",
            "fedward_node_disk_size_bytes{site='a'}": "100x140",
        },
        {
            "fedward_node_disk_free_bytes{site='a'}": "_x100 29-0.05x40",
            "fedward_node_disk_size_bytes{site='a'}": "100x140",
        },
        {"site": "a"},
    ),
    Case(
        "FedwardRoundStalled",
        10,
        {
            "fedward_round_running{study='s'}": "1x20",
            "fedward_round_deadline_timestamp_seconds{study='s'}": "120x20",
        },
        {
            "fedward_round_running{study='s'}": "1x20",
            "fedward_round_deadline_timestamp_seconds{study='s'}": "3600x20",
            "fedward_study_last_event_timestamp_seconds{study='s'}": "0+60x20",
            "fedward_round_duration_seconds_sum{study='s'}": "0+30x20",
            "fedward_round_duration_seconds_count{study='s'}": "0+1x20",
        },
        {"study": "s"},
    ),
    Case(
        "FedwardTooFewSites",
        10,
        {"fedward_rounds_total{study='s',result='skipped'}": "0x3 1x20"},
        {"fedward_rounds_total{study='s',result='skipped'}": "0x20"},
        {"study": "s", "result": "skipped"},
    ),
    Case(
        "FedwardStudyNotStarting",
        15,
        {"fedward_study_state{study='s',state='queued'}": "1x20"},
        {"fedward_study_state{study='s',state='queued'}": "1x2 0x20"},
        {"study": "s", "state": "queued"},
    ),
    Case(
        "FedwardStudyFailed",
        5,
        {
            "fedward_study_state{study='s',state='failed'}": "0x2 1x20",
            "fedward_study_last_event_timestamp_seconds{study='s'}": "120x20",
        },
        {
            "fedward_study_state{study='s',state='failed'}": "0x20",
            "fedward_study_last_event_timestamp_seconds{study='s'}": "120x20",
        },
        {"study": "s", "state": "failed"},
    ),
    Case(
        "FedwardStudyInterrupted",
        30,
        {"fedward_study_interruptions_total{study='s'}": "0x5 1x5 2x5 3x5 4x20"},
        {"fedward_study_interruptions_total{study='s'}": "0x5 1x40"},
        {"study": "s"},
    ),
    Case(
        "FedwardSiteFailing",
        30,
        {"fedward_site_missed_rounds_total{study='s',site='a'}": "0x10 1x5 2x5 3x20"},
        {"fedward_site_missed_rounds_total{study='s',site='a'}": "0x10 1x40"},
        {"study": "s", "site": "a"},
    ),
    Case(
        "FedwardUpdateNotFinite",
        10,
        {
            "fedward_site_results_total"
            "{study='s',site='a',outcome='refused',reason='not_finite'}": "0x3 1x20"
        },
        {"fedward_site_results_total{study='s',site='a',outcome='ok',reason=''}": "0+1x40"},
        {"study": "s", "site": "a"},
    ),
    Case(
        "FedwardLossDiverging",
        20,
        {"fedward_evaluation_loss{study='s'}": "2x5 1x5 1.5x20"},
        {"fedward_evaluation_loss{study='s'}": "2x5 1x5 0.9x20"},
        {"study": "s"},
    ),
    Case(
        "FedwardBytesAnomaly",
        60,
        {
            f"fedward_site_payload_bytes_total"
            f"{{study='s',site='{site}',direction='up',codec='fp32'}}": f"0+{step}x80"
            for site, step in (("a", 10_000_000), ("b", 1000), ("c", 1000), ("d", 1000))
        },
        {
            f"fedward_site_payload_bytes_total"
            f"{{study='s',site='{site}',direction='up',codec='fp32'}}": "0+10000000x80"
            for site in "abcd"
        },
        {"study": "s", "site": "a", "direction": "up"},
    ),
    *(
        Case(
            f"FedwardCertificateExpires{days}d",
            5,
            {
                "fedward_certificate_not_after_timestamp_seconds{certificate='ca'}": (
                    f"{days * DAY - 3600}x10"
                )
            },
            {
                "fedward_certificate_not_after_timestamp_seconds{certificate='ca'}": (
                    f"{90 * DAY}x10"
                ),
                # One that lives thirty days in all, on its second.
                "fedward_certificate_not_after_timestamp_seconds{certificate='a'}": (
                    f"{29 * DAY}x10"
                ),
                "fedward_certificate_not_before_timestamp_seconds{certificate='a'}": f"{-DAY}x10",
            },
            {"certificate": "ca"},
        )
        for days in (30, 7, 1)
    ),
    Case(
        "FedwardRevocationListEnds",
        5,
        {"fedward_revocation_list_end_timestamp_seconds": "3600x10"},
        {"fedward_revocation_list_end_timestamp_seconds": f"{6 * DAY}x10"},
        {},
    ),
    Case(
        "FedwardGuessing",
        10,
        {"fedward_requests_refused_total{surface='login',reason='wrong_token'}": "0+5x20"},
        {"fedward_requests_refused_total{surface='login',reason='wrong_token'}": "0x5 1x20"},
        {"surface": "login"},
    ),
    Case(
        "FedwardControlPlaneDown",
        5,
        {"up{job='fedward',instance='i'}": "0x10"},
        {"up{job='fedward',instance='i'}": "1x10"},
        {"job": "fedward", "instance": "i"},
    ),
    Case(
        "FedwardControlPlaneBlind",
        10,
        {"fedward_aggregator_last_seen_timestamp_seconds": "60x20"},
        {"fedward_aggregator_last_seen_timestamp_seconds": "0+60x20"},
        {},
    ),
    Case(
        "FedwardControlPlaneDiskFilling",
        10,
        {"fedward_state_disk_free_bytes": "5x20", "fedward_state_disk_size_bytes": "100x20"},
        {"fedward_state_disk_free_bytes": "50x20", "fedward_state_disk_size_bytes": "100x20"},
        {},
    ),
]


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def test_the_rules_are_well_formed() -> None:
    """promtool accepts the rules, templates included."""
    assert promtool("check", "rules", str(RULES)).returncode == 0


def test_every_alert_has_a_case_a_severity_a_sentence_and_a_runbook() -> None:
    """No alert without a test, and none that leaves a person alone at night."""
    assert {case.alert for case in CASES} == {rule["alert"] for rule in RULE_LIST}
    for rule in RULE_LIST:
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}, rule["alert"]
        assert rule["annotations"]["description"].endswith("."), rule["alert"]
        page = rule["annotations"]["runbook_url"].rsplit("/", 1)[1]
        text = (RUNBOOKS / page).read_text()
        for heading in ("## What it means", "## What to look at", "## What to do"):
            assert heading in text, f"{page} lacks {heading}"


def test_rules_name_only_metrics_that_exist() -> None:
    """A misspelt metric would make an alert that never fires."""
    for rule in RULE_LIST:
        for name in re.findall(r"\bfedward_\w+", rule["expr"]):
            family = re.sub(r"_(sum|count|bucket)$", "", name)
            assert name in ALL or family in ALL, f"{rule['alert']}: {name}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_an_alert_fires_for_its_fault_only(case: Case, tmp_path: Path) -> None:
    """With the fault it is firing after its `for`; with the healthy series it is not."""
    (rule,) = (rule for rule in RULE_LIST if rule["alert"] == case.alert)
    labels = {
        "alertname": case.alert,
        "alertstate": "firing",
        "severity": rule["labels"]["severity"],
    } | case.labels
    series = "ALERTS{" + ", ".join(f'{key}="{value}"' for key, value in labels.items()) + "}"
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            _test(case, case.fault, [{"labels": series, "value": 1}]),
            _test(case, case.healthy, []),
        ],
    }
    file = tmp_path / "alerts.test.json"
    file.write_text(json.dumps(document))
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def _test(case: Case, series: dict[str, str], expected: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": key, "values": value} for key, value in series.items()],
        "promql_expr_test": [
            {
                "expr": f'ALERTS{{alertname="{case.alert}",alertstate="firing"}}',
                "eval_time": f"{case.minutes}m",
                "exp_samples": expected,
            }
        ],
    }
