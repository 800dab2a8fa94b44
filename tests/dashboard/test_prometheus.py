"""A real Prometheus scrapes the control plane: every query of every panel has data, alerts fire."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from dashboard.grafana.generate import DASHBOARDS
from protocol.control import INGEST_NODES, SITE_PROGRESS, STUDIES, Role
from protocol.states import Reason, SiteOutcome

from .factories import SITES, Story, health, snapshot
from .service import Service, free_port
from .test_alerts import PROMETHEUS

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)"
)


class Prometheus:
    """A Prometheus of the test's own, with our rules, scraping every second."""

    def __init__(self, service: Service, folder: Path) -> None:
        settings: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        settings["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
        settings["rule_files"] = [str(PROMETHEUS / "rules" / "*.rules.yml")]
        del settings["alerting"]
        (job,) = settings["scrape_configs"]
        job["authorization"]["credentials_file"] = str(service.folder / "tokens/operator.token")
        job["tls_config"]["ca_file"] = str(service.folder / "plane.crt")
        job["static_configs"] = [{"targets": [f"127.0.0.1:{service.port}"]}]
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(settings))
        port = free_port()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20)
        with (folder / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={file}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query's series."""
        body = self.client.post("/api/v1/query", data={"query": expression}).json()
        assert body["status"] == "success", (expression, body)
        found: list[dict[str, Any]] = body["data"]["result"]
        return found

    def wait(self, expression: str, seconds: float = 60.0) -> list[dict[str, Any]]:
        """Wait until a query has data."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                found = self.query(expression)
            except httpx.TransportError:
                found = []
            if found:
                return found
            time.sleep(0.5)
        raise AssertionError(f"no data: {expression}")

    def stop(self) -> None:
        """End it."""
        self.client.close()
        self.process.terminate()
        self.process.wait(timeout=20)


@pytest.fixture(scope="module")
def prometheus(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrapes a federation that works first, and then has one of each fault."""
    made = Prometheus(service, tmp_path_factory.mktemp("prometheus"))
    try:
        story = Story("demo-0a1b2c", start=time.time() - 30)
        service.send([*story.beginning(), *story.a_round(1), *story.a_round(2)])
        service.send_nodes()
        _log_in(service, "a wrong token")
        _nodes(service, {})
        made.wait('fedward_rounds_total{result="aggregated"} == 2')
        time.sleep(3)  # an increase needs two scrapes before it and one after
        _faults(service, story)
        made.wait('fedward_site_results_total{reason="not_finite"}')
        time.sleep(4)
        yield made
    finally:
        made.stop()


def _faults(service: Service, story: Story) -> None:
    service.send(
        [
            *story.a_round(3),
            story.round_started(4),
            story.result("alder", 4, resent=1),
            story.missing("birch", 4, SiteOutcome.REFUSED, reason=Reason.NOT_FINITE),
            story.missing("cedar", 4, SiteOutcome.LATE, reason=Reason.TOO_LATE),
            story.round_finished(4, aggregated=False, sites_ok=1),
            *story.a_round(5),
            story.round_started(6),
        ]
    )
    for _ in range(3):
        _log_in(service, "a wrong token")
    _log_in(service, service.token(Role.COORDINATOR))
    with service.client(None) as client:
        report = service.hospitals.report("birch", health=health(started_at=9.0, gpus=()))
        assert client.post(SITE_PROGRESS, content=report).status_code == 204
    service.hospitals.revoked["cedar"] = time.time()
    service.hospitals.write()
    _nodes(service, {"refused_requests": 5})


def _nodes(service: Service, changes: dict[str, Any]) -> None:
    body = [snapshot(site, **changes).model_dump(mode="json") for site in SITES]
    with service.client(Role.AGGREGATOR) as client:
        assert client.post(INGEST_NODES, json=body).status_code == 200


def _log_in(service: Service, token: str) -> None:
    with service.client(None) as client:
        client.post("/api/v1/session", json={"token": token})


def test_every_query_of_every_panel_has_data(prometheus: Prometheus) -> None:
    """No panel is blank because of a misspelt label or a join that never matches."""
    empty = []
    for board in DASHBOARDS:
        for panel in board.document()["panels"]:
            for target in panel.get("targets", []):
                expression = re.sub(r"\$(study|site)\b", ".*", target["expr"])
                if not prometheus.query(expression):
                    empty.append((board.uid, panel["title"], expression))
    assert empty == []


def test_every_rule_is_evaluated_without_error(prometheus: Prometheus) -> None:
    """Prometheus itself calls each rule healthy."""
    groups = prometheus.client.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}, [
        (rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"
    ]


@pytest.mark.parametrize(
    "alert",
    [
        "FedwardUpdateNotFinite",
        "FedwardTooFewSites",
        "FedwardRevokedNodeActive",
        "FedwardGpuLost",
        "FedwardNodeRefused",
    ],
)
def test_a_fault_raises_its_alert(prometheus: Prometheus, alert: str) -> None:
    """Pending counts: how long an alert waits is what promtool's tests hold."""
    prometheus.wait(f'ALERTS{{alertname="{alert}"}}', seconds=20)


def test_the_scrape_is_the_operators(prometheus: Prometheus, service: Service) -> None:
    """Prometheus reads with the operator's token over TLS, and is up."""
    (series,) = prometheus.query('up{job="fedward"}')
    assert series["value"][1] == "1"
    assert service.get(STUDIES)["items"]
