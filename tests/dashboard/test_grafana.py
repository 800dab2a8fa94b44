"""Grafana's dashboards: generated, complete, and over metrics that exist."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboard.grafana.generate import DASHBOARDS, files
from dashboard.grafana.panels import Dashboard
from protocol.metrics import ALL

ROOT = Path(__file__).parents[2]
RULES = ROOT / "dashboard" / "prometheus" / "rules" / "fedward.rules.yml"


def families(text: str) -> set[str]:
    names = set(re.findall(r"\bfedward_\w+", text))
    return {name if name in ALL else re.sub(r"_(sum|count|bucket)$", "", name) for name in names}


def panels(board: Dashboard) -> list[dict[str, Any]]:
    return [panel for panel in board.document()["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("file", files(), ids=lambda file: file.name)
def test_the_committed_json_is_the_generators(file: Path) -> None:
    """Nobody edited a dashboard by hand, and nobody forgot to generate it."""
    assert file.read_text() == files()[file], "run python -m dashboard.grafana.generate"


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.uid)
def test_a_dashboard_is_complete(board: Dashboard) -> None:
    """Every panel has a title, a unit, a query with a data source, and a place of its own."""
    places = set()
    for panel in panels(board):
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        assert all(target["expr"] and target["datasource"] for target in panel["targets"])
        places.add((panel["gridPos"]["x"], panel["gridPos"]["y"]))
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    assert len(places) == len(panels(board))


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.uid)
def test_links_lead_to_dashboards_that_exist(board: Dashboard) -> None:
    """A click on a hospital or a study arrives."""
    known = {one.uid for one in DASHBOARDS}
    found = re.findall(r'"/d/([\w-]+)\?', json.dumps(board.document()))
    assert set(found) <= known


def test_every_metric_is_used_and_every_used_metric_exists() -> None:
    """No query over a metric that is not exported, no metric that nobody looks at."""
    rules = yaml.safe_load(RULES.read_text())
    text = "\n".join(rule["expr"] for group in rules["groups"] for rule in group["rules"])
    text += "\n".join(json.dumps(board.document()) for board in DASHBOARDS)
    used = families(text)
    assert used - set(ALL) == set()
    assert set(ALL) - used == set()
