"""How a dashboard is built: panels in rows, as Grafana's JSON (schema 39, Grafana 10.4 on)."""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

SOURCE: Final = {"type": "prometheus", "uid": "${source}"}
WIDTH: Final = 24  # Grafana's grid

Color = Literal["green", "yellow", "orange", "red", "blue", "text"]


@dataclass(frozen=True)
class Query:
    """One PromQL expression and how its series are called."""

    expr: str
    legend: str = ""
    instant: bool = False


def query(expr: str, legend: str = "") -> Query:
    """A curve."""
    return Query(expr, legend)


def now(expr: str, legend: str = "") -> Query:
    """A figure of this moment."""
    return Query(expr, legend, instant=True)


@dataclass(frozen=True)
class Panel:
    """One picture. `steps` are thresholds: the colour from a value on."""

    title: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat", "table", "bargauge", "heatmap"] = "timeseries"
    unit: str = "short"
    help: str = ""
    steps: tuple[tuple[float | None, Color], ...] = ((None, "green"),)
    words: tuple[tuple[float, str, Color], ...] = ()  # a value shown as a word
    link: str = ""  # uid of the dashboard that a series' site or study leads to
    minimum: float | None = None
    maximum: float | None = None
    stacked: bool = False

    def document(self, number: int, place: dict[str, int]) -> dict[str, Any]:
        """Grafana's JSON."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.help,
            "datasource": SOURCE,
            "gridPos": place,
            "targets": [self._target(index, one) for index, one in enumerate(self.queries)],
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": self._options(),
            "transformations": _TABLE if self.kind == "table" else [],
        }

    def _target(self, index: int, one: Query) -> dict[str, Any]:
        return {
            "refId": chr(ord("A") + index),
            "datasource": SOURCE,
            "expr": one.expr,
            "legendFormat": one.legend or "__auto",
            "instant": one.instant,
            "range": not one.instant,
            "format": {"table": "table", "heatmap": "heatmap"}.get(self.kind, "time_series"),
        }

    def _defaults(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "unit": self.unit,
            "thresholds": {
                "mode": "absolute",
                "steps": [{"value": value, "color": color} for value, color in self.steps],
            },
            "mappings": [
                {
                    "type": "value",
                    "options": {
                        f"{value:g}": {"text": text, "color": color, "index": index}
                        for index, (value, text, color) in enumerate(self.words)
                    },
                }
            ]
            if self.words
            else [],
            "links": self._links(),
        }
        if self.minimum is not None:
            found["min"] = self.minimum
        if self.maximum is not None:
            found["max"] = self.maximum
        if self.kind == "timeseries":
            marked = len(self.steps) > 1
            found["custom"] = {
                "lineWidth": 2,
                "fillOpacity": 25 if self.stacked else 6,
                "spanNulls": 60_000,
                "showPoints": "auto",
                "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": "line" if marked else "off"},
            }
            if not marked:
                found["color"] = {"mode": "palette-classic"}
        return found

    def _links(self) -> list[dict[str, Any]]:
        if not self.link:
            return []
        label = {"fedward-hospital": "site", "fedward-study": "study"}[self.link]
        return [
            {
                "title": f"Show this {label}",
                "url": f"/d/{self.link}?var-{label}=${{__field.labels.{label}}}"
                "&${__url_time_range}",
            }
        ]

    def _options(self) -> dict[str, Any]:
        if self.kind == "timeseries":
            return {
                "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        if self.kind in {"stat", "bargauge"}:
            return {
                "reduceOptions": {"calcs": ["lastNotNull"]},
                "colorMode": "background",
                "graphMode": "none",
                "textMode": "auto",
                "orientation": "horizontal" if self.kind == "bargauge" else "auto",
                "displayMode": "basic",
            }
        if self.kind == "heatmap":
            return {"calculate": False, "color": {"scheme": "Oranges"}, "yAxis": {"unit": "s"}}
        return {"showHeader": True, "cellHeight": "sm"}


_TABLE: Final[list[dict[str, Any]]] = [
    {"id": "merge", "options": {}},
    {
        "id": "organize",
        "options": {"excludeByName": dict.fromkeys(("Time", "__name__", "instance", "job"), True)},
    },
]


@dataclass(frozen=True)
class Row:
    """Panels beside each other, of equal width."""

    title: str
    panels: tuple[Panel, ...]
    height: int = 8


@dataclass(frozen=True)
class Dashboard:
    """A page of rows; `variables` are label names to choose values of."""

    uid: str
    title: str
    help: str
    rows: tuple[Row, ...]
    variables: tuple[tuple[str, str], ...] = ()  # label, and the metric it is read from
    annotations: tuple[tuple[str, str, str], ...] = ()  # name, expression, colour
    tags: tuple[str, ...] = field(default=("fedward",))

    def document(self) -> dict[str, Any]:
        """Grafana's JSON."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.help,
            "tags": list(self.tags),
            "schemaVersion": 39,
            "version": 1,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": {"from": "now-3h", "to": "now"},
            "timezone": "browser",
            "links": [
                {
                    "type": "dashboards",
                    "title": "fedward",
                    "tags": ["fedward"],
                    "asDropdown": False,
                    "includeVars": True,
                    "keepTime": True,
                }
            ],
            "templating": {"list": [_SOURCE_VARIABLE, *map(_variable, self.variables)]},
            "annotations": {"list": [_annotation(*one) for one in self.annotations]},
            "panels": self._panels(),
        }

    def _panels(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        top = 0
        for row in self.rows:
            place = {"x": 0, "y": top, "w": WIDTH, "h": 1}
            found.append(
                {
                    "id": len(found) + 1,
                    "type": "row",
                    "title": row.title,
                    "collapsed": False,
                    "panels": [],
                    "gridPos": place,
                }
            )
            top += 1
            width = WIDTH // len(row.panels)
            for index, panel in enumerate(row.panels):
                place = {"x": index * width, "y": top, "w": width, "h": row.height}
                found.append(panel.document(len(found) + 1, place))
            top += row.height
        return found


_SOURCE_VARIABLE: Final[dict[str, Any]] = {
    "name": "source",
    "label": "Prometheus",
    "type": "datasource",
    "query": "prometheus",
    "refresh": 1,
}


def _variable(chosen: tuple[str, str]) -> dict[str, Any]:
    label, metric = chosen
    expression = f"label_values({metric}, {label})"
    return {
        "name": label,
        "label": label.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "definition": expression,
        "query": {"query": expression, "refId": "variable"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"], "selected": True},
    }


def _annotation(name: str, expression: str, color: str) -> dict[str, Any]:
    return {
        "name": name,
        "datasource": SOURCE,
        "enable": True,
        "expr": expression,
        "iconColor": color,
        "step": "10s",
        "titleFormat": name,
        "textFormat": "{{study}} {{site}} {{alertname}}",
    }
