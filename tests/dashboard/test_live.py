"""A live federation, scraped by a real Prometheus that tells a real Alertmanager.

One federation for the whole module: first it works and nothing fires; then everything that an alert
is for is made to happen. Alerts wait a twentieth of the time that they wait in production
(`monitoring.HASTE`); how long that is, promtool's tests hold.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboard.grafana.generate import DASHBOARDS
from protocol.control import Role
from protocol.states import StudyState, TrainerState
from server.journal import read_journal

from .chromium import LOADED, Browser, browser
from .chromium import missing as chromium_missing
from .factories import health
from .faults import GPUS, Faults
from .live import Live
from .monitoring import Alertmanager, Prometheus, missing
from .test_alerts import RULE_LIST, RUNBOOKS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(missing()), reason=missing() or "they are here"),
]

STEADY = {"adapter": {"rank": 16, "alpha": 16}}  # 0.8 MB a message, 2 kB of it Flower's own
ON_SMALL_DISKS = {"FedwardDiskFilling", "FedwardControlPlaneDiskFilling"}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Three hospitals at work."""
    made = Live(tmp_path_factory.mktemp("l"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def alertmanager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alertmanager]:
    """Debian's Alertmanager with our routes."""
    made = Alertmanager(tmp_path_factory.mktemp("alertmanager"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def prometheus(
    live: Live, alertmanager: Alertmanager, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Debian's Prometheus with our rules."""
    live.report(health=health(gpus=GPUS, state=TrainerState.IDLE))
    made = Prometheus(
        tmp_path_factory.mktemp("prometheus"),
        target=f"localhost:{live.federation.ports['control_plane']}",
        ca=live.layout.trust(),
        token=live.token(Role.OPERATOR),
        alertmanager=alertmanager,
    )
    yield made
    made.stop()


@pytest.fixture(scope="module")
def finished(live: Live, prometheus: Prometheus) -> str:
    """A study that ended well, though the control plane was killed while it ran."""
    study_id = live.study("steady", **STEADY)
    for rounds in (1, 2):
        live.wait("a round", lambda rounds=rounds: live.plane.study(study_id).rounds_done >= rounds)
        live.restart("control-plane")
    ended(live, study_id)
    prometheus.wait(f'fedward_study_state{{study="{study_id}",state="finished"}} == 1')
    return study_id


def ended(live: Live, study_id: str) -> str:
    """Wait for a study's end."""
    live.wait("its end", lambda: live.plane.study(study_id).state.ended)
    return study_id


def test_the_history_has_no_hole_and_no_double_after_kill_9(live: Live, finished: str) -> None:
    """Killed twice in a study, the control plane has what the aggregator's journal has."""
    assert live.plane.study(finished).state is StudyState.FINISHED
    journal = live.layout.aggregator / "state" / "studies" / finished / "events.jsonl"
    assert live.plane.events(finished) == list(read_journal(journal))


def test_bytes_of_hospitals_add_up_to_flowers_totals(live: Live, finished: str) -> None:
    """Our payload is within 1 % of what Flower counted for the run, each way.

    Flower also counts an object that it moved twice because an answer was slow; so a study in which
    that happened, on a machine that is very busy, is followed by one more.
    """
    for study_id in (finished, None):
        study_id = study_id or ended(live, live.study("again", **STEADY))
        study = live.plane.study(study_id)
        up = sum(site.bytes_up for site in study.sites)
        down = sum(site.bytes_down for site in study.sites)
        flower = study.flower_bytes_in, study.flower_bytes_out
        assert up <= flower[0]
        assert down <= flower[1]
        if (up, down) == pytest.approx(flower, rel=0.01):
            return
    assert (up, down) == pytest.approx(flower, rel=0.01)


def test_data_and_codecs_have_a_name(live: Live, prometheus: Prometheus, finished: str) -> None:
    """Each hospital's data has a fingerprint of its own, and no byte is without a codec."""
    prints = {site.data_fingerprint for site in live.plane.study(finished).sites}
    assert len(prints) == 3
    assert None not in prints
    found = prometheus.query(f'fedward_site_payload_bytes_total{{study="{finished}"}}')
    assert {series["metric"]["codec"] for series in found} == {"fp32", "none"}


def test_nothing_fires_while_all_is_well(
    prometheus: Prometheus, alertmanager: Alertmanager, finished: str
) -> None:
    """After a study of a healthy federation, Alertmanager has heard of nothing but our kills.

    (And perhaps that a study was slow to start: ten minutes are thirty seconds here.)
    """
    assert prometheus.query('up{job="fedward"}')[0]["value"][1] == "1"
    excused = {"FedwardControlPlaneDown", "FedwardStudyNotStarting"}
    assert set(alertmanager.seen) <= excused, alertmanager.seen


@pytest.fixture(scope="module")
def watched(live: Live, prometheus: Prometheus, finished: str) -> str:
    """A study in the middle of its rounds."""
    rounds = {"count": 500, "deadline_seconds": 30, "failed_rounds": 3}
    study_id = live.study("watched", rounds=rounds)
    live.wait("three rounds", lambda: live.plane.study(study_id).rounds_done >= 3)
    prometheus.wait(f'fedward_site_missed_rounds_total{{study="{study_id}"}}')
    return study_id


@pytest.fixture(scope="module")
def window(live: Live, watched: str) -> Iterator[Browser]:
    """A browser in which a coordinator is logged in."""
    if chromium_missing():
        pytest.skip(chromium_missing())
    with browser() as made:
        made.size(1280, 900, dark=False)
        made.log_in(live.federation.dashboard, live.token(Role.COORDINATOR).read_text().strip())
        yield made


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["overview", "study", "hospital"])
def test_the_pages_of_a_federation_at_work_fit_and_can_be_read(
    live: Live, window: Browser, watched: str, name: str, width: int, dark: bool, axe: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    """While rounds go on: no sideways scrolling, and axe finds nothing serious."""
    path = {"overview": "/", "study": f"/studies/{watched}", "hospital": "/hospitals/alder"}[name]
    window.size(width, 900, dark=dark)
    window.go(live.federation.dashboard + path, LOADED)
    window.wait("document.querySelectorAll('.u-wrap').length === 3", 30)
    window.wait("document.querySelectorAll('.log li').length > 5", 30)
    folder = Path(os.environ.get("FEDWARD_SCREENSHOTS", tmp_path))
    window.judge(folder / f"live-{name}-{width}-{'dark' if dark else 'light'}.png", width, axe)


@pytest.fixture(scope="module")
def faulty(
    live: Live, prometheus: Prometheus, alertmanager: Alertmanager, watched: str
) -> tuple[list[str], list[dict[str, Any]]]:
    """Everything goes wrong; the panels without data, and Prometheus's rules, before the end."""
    faults = Faults(live, prometheus, alertmanager)
    alertmanager.seen.clear()
    faults.bad_reports()
    faults.guesses()
    faults.stranger()
    faults.too_many_bytes()
    faults.short_certificates()
    faults.not_a_number()
    faults.wedge()
    faults.too_few(watched)
    faults.full_disks()
    faults.restarting_trainer()
    alertmanager.wait("FedwardTrainerRestarting")
    if live.small_disks:
        alertmanager.wait(*ON_SMALL_DISKS)
    faults.away()
    shaken = faults.shaken()
    faults.waiting()
    faults.stalled(shaken)
    alertmanager.wait("FedwardNodeDown", "FedwardNodeWedged", "FedwardStudyNotStarting")
    faults.blind()
    faults.revoked()
    last = {"FedwardControlPlaneDown", *(set() if live.small_disks else ON_SMALL_DISKS)}
    alertmanager.wait(*({rule["alert"] for rule in RULE_LIST} - last))
    empty = [
        f"{board.uid}, {panel['title']}: {expression}"
        for board in DASHBOARDS
        for panel in board.document()["panels"]
        for target in panel.get("targets", [])
        if not prometheus.lately(expression := re.sub(r"\$(study|site)\b", ".*", target["expr"]))
    ]
    groups = prometheus.client.get("/api/v1/rules").json()["data"]["groups"]
    alertmanager.seen.pop("FedwardControlPlaneDown", None)
    faults.gone()
    alertmanager.wait("FedwardControlPlaneDown")
    return empty, [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("rule", RULE_LIST, ids=lambda rule: rule["alert"])
def test_a_fault_raises_its_alert(
    live: Live,
    alertmanager: Alertmanager,
    faulty: tuple[list[str], list[dict[str, Any]]],
    rule: dict[str, Any],
) -> None:
    """It arrived at Alertmanager with its severity, a whole sentence and a link to its runbook."""
    name = rule["alert"]
    if name in ON_SMALL_DISKS and not live.small_disks:
        pytest.skip("this machine does not let us mount a small disk")
    assert alertmanager.seen[name]
    for alert in alertmanager.seen[name]:
        assert alert["labels"]["severity"] == rule["labels"]["severity"]
        assert "runbooks" not in alert["labels"]
        words = alert["annotations"]
        for sentence in (words["summary"], words["description"]):
            assert not re.search(r"\{\{|<no value>|NaN B", sentence), sentence
        address, _, page = words["runbook_url"].rpartition("/")
        assert address == f"{live.federation.dashboard}/runbooks"
        assert (RUNBOOKS / page).exists()


def test_every_query_of_every_panel_has_data(
    faulty: tuple[list[str], list[dict[str, Any]]],
) -> None:
    """No panel is blank because of a misspelt label or a join that never matches."""
    assert faulty[0] == []


def test_every_rule_is_evaluated_without_error(
    faulty: tuple[list[str], list[dict[str, Any]]],
) -> None:
    """Prometheus itself calls each rule healthy."""
    assert len(faulty[1]) == len(RULE_LIST)
    assert {rule["health"] for rule in faulty[1]} == {"ok"}, faulty[1]


def test_a_blind_control_plane_silences_what_it_cannot_know(
    alertmanager: Alertmanager, faulty: tuple[list[str], list[dict[str, Any]]]
) -> None:
    """Alertmanager holds back alerts about nodes, rounds and trainers; the rest goes out."""
    states = {
        alert["labels"]["alertname"]: alert["status"]["state"] for alert in alertmanager.now()
    }
    assert states["FedwardControlPlaneDown"] == "active"
    held = [name for name, state in states.items() if state == "suppressed"]
    for name in held:
        assert re.match(r"Fedward(Node|Round|Site|Trainer|Study)", name), name
