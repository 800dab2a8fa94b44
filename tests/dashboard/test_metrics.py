"""/metrics: names, types and values that Prometheus's own tools accept."""

import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from protocol import metrics
from protocol.control import Role

from .factories import SITES, Story
from .service import Service


@pytest.fixture(scope="module")
def text(service: Service) -> str:
    """One scrape after a finished study, and one that runs."""
    service.send(Story("done-000001").whole())
    running = Story("live-000001")
    service.send([*running.beginning(), *running.a_round(1), running.round_started(2)])
    service.send_nodes()
    return scraped(service)


def scraped(service: Service) -> str:
    with service.client(Role.OPERATOR) as client:
        return client.get("/metrics").text


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_promtool_finds_nothing_to_criticise(text: str) -> None:
    """Names, units, help texts and types pass `promtool check metrics`."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_every_declared_metric_is_exported_and_no_other(text: str) -> None:
    """What protocol.metrics names is what a scrape shows, but for what needs a fault first."""
    shown = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    after_a_fault = {metrics.SITE_RESENT.name, metrics.REQUESTS_REFUSED.name}
    quiet = {metrics.AUDIT_RECORDS.name}  # nobody has logged in yet
    quiet.add(metrics.REVOCATION_LIST_END.name)  # no edge here that would read one
    assert shown <= set(metrics.ALL)
    assert set(metrics.ALL) - shown <= after_a_fault | quiet


def test_labels_are_those_that_are_declared(text: str) -> None:
    """No sample has a label that its metric does not declare."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name
            for suffix in ("_bucket", "_sum", "_count"):
                if name.removesuffix(suffix) in metrics.ALL:
                    name = name.removesuffix(suffix)
            assert set(sample.labels) - {"le"} == set(metrics.ALL[name].labels), sample


def test_bytes_are_the_sum_of_the_events(text: str) -> None:
    """Five rounds of 100,000 bytes up from each site, and what prepare cost."""
    found = samples(text)
    for site in SITES:
        own = {("study", "done-000001"), ("site", site), ("direction", "up")}
        name = "fedward_site_payload_bytes_total"
        assert found[name, frozenset({*own, ("codec", "fp16")})] == 500_000
        assert found[name, frozenset({*own, ("codec", "none")})] == 2_000


def test_a_histogram_sums_up(text: str) -> None:
    """Every bucket holds the ones below it, and the last one all."""
    found = samples(text)
    own = ("study", "done-000001")
    name = "fedward_round_duration_seconds"
    assert found[name + "_bucket", frozenset({own, ("le", "1")})] == 0
    assert found[name + "_bucket", frozenset({own, ("le", "5")})] == 5
    assert found[name + "_bucket", frozenset({own, ("le", "+Inf")})] == 5
    assert found[name + "_count", frozenset({own})] == 5


def test_counters_survive_a_kill(fresh: Service) -> None:
    """After kill -9 and a restart, every counter says what it said before."""
    fresh.send(Story("kept-000001").whole(rounds=2))
    before = samples(scraped(fresh))
    fresh.kill()
    fresh.start()
    after = samples(scraped(fresh))
    counted = {key: value for key, value in before.items() if key[0].endswith(("_total", "_count"))}
    assert counted
    assert {key: after.get(key) for key in counted} == counted


def test_metrics_need_a_token(service: Service) -> None:
    """The figures name hospitals, so nobody reads them without a token."""
    with service.client(None) as client:
        assert client.get("/metrics").status_code == 401
    with service.client(Role.AGGREGATOR) as client:
        assert client.get("/metrics").status_code == 403
