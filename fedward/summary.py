"""Tables for people: nodes, studies, checks, and what a study brought."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from dashboard.views import NodeView, StudyBrief
from hospital_node.doctor import Check

from .watch import size


def nodes_table(nodes: Sequence[NodeView]) -> RenderableType:
    """Every hospital: is it up, what does its trainer do."""
    table = Table(title="Hospitals", title_justify="left")
    for column in ("hospital", "node", "trainer", "study", "clock offset", "refused"):
        table.add_column(column)
    for node in nodes:
        progress = node.progress
        offset = node.clock_offset_seconds
        table.add_row(
            node.site,
            "revoked" if node.revoked else ("up" if node.up else node.status),
            str(progress.health.state) if progress else "-",
            (progress.study_id or "-") if progress else "-",
            "-" if offset is None else f"{offset:+.1f} s",
            str(node.refused_requests),
        )
    return table


def studies_table(studies: Sequence[StudyBrief]) -> RenderableType:
    """Every study: how far it is and what it costs."""
    table = Table(title="Studies", title_justify="left")
    for column in ("study", "state", "round", "accuracy", "up", "down", "verdict"):
        table.add_column(column)
    for study in studies:
        accuracy = study.eval_accuracy
        table.add_row(
            study.study_id,
            str(study.state),
            f"{study.rounds_done}/{study.rounds_total}",
            "-" if accuracy is None else f"{accuracy:.1%}",
            size(study.bytes_up),
            size(study.bytes_down),
            study.verdict,
        )
    return table


def checks_table(checks: Sequence[tuple[str, Check]]) -> RenderableType:
    """What the doctor found; a hint where something is to be mended."""
    table = Table()
    for column in ("hospital", "check", "", "finding"):
        table.add_column(column)
    for site, check in checks:
        mark = "[green]ok[/]" if check.ok else "[red]mend[/]"
        hint = f"\n[dim]{check.hint}[/]" if check.hint and not check.ok else ""
        table.add_row(site, check.name, mark, f"{check.sentence}{hint}")
    return table


def report_tables(report: Mapping[str, Any]) -> RenderableType:
    """The end of a study: accuracies, bytes, seconds, and what went wrong on the way."""
    parts: list[RenderableType] = [_accuracy(report), _traffic(report), _seconds(report)]
    if report.get("forecast"):
        parts.append(_forecast(report["forecast"]))
    if report["faults"]:
        parts.append(_faults(report))
    return Group(*parts)


def _accuracy(report: Mapping[str, Any]) -> Table:
    table = Table(title="Held-out accuracy", title_justify="left")
    table.add_column("adapter")
    table.add_column("accuracy", justify="right")
    accuracy = report["accuracy"]
    table.add_row("base model", _percent(accuracy["base"]))
    for site, alone in accuracy["lone"].items():
        table.add_row(f"{site} alone, same steps", _percent(alone))
    table.add_row("[bold]federated[/]", f"[bold]{_percent(accuracy['federated'])}[/]")
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _traffic(report: Mapping[str, Any]) -> Table:
    table = Table(title="Payload bytes", title_justify="left")
    for column in ("hospital", "up", "down", "rounds"):
        table.add_column(column, justify="left" if column == "hospital" else "right")
    for site, numbers in report["sites"].items():
        done = numbers["rounds"].get("ok", 0)
        table.add_row(
            site,
            size(numbers["bytes"]["up"]),
            size(numbers["bytes"]["down"]),
            f"{done}/{len(report['rounds'])}",
        )
    return table


def _seconds(report: Mapping[str, Any]) -> Table:
    table = Table(title="Seconds a round", title_justify="left")
    table.add_column("part")
    table.add_column("mean", justify="right")
    names = {"total": "all", "training": "training and evaluation", "other": "everything else"}
    for key, value in report["seconds_per_round"].items():
        table.add_row(names.get(key, key), f"{value:.2f}")
    return table


def _forecast(told: Mapping[str, Any]) -> Table:
    table = Table(title="Forecast and fact", title_justify="left")
    for column in ("", "told before round 1", "came"):
        table.add_column(column, justify="right" if column else "left")
    pair = told["seconds_round"]
    table.add_row("seconds a round", *(_number(pair[key]) for key in ("told", "came")))
    for key, name in (("bytes_up", "bytes up"), ("bytes_down", "bytes down")):
        table.add_row(name, size(told[key]["told"]), size(told[key]["came"]))
    return table


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}"


def _faults(report: Mapping[str, Any]) -> Table:
    table = Table(title="What went wrong on the way", title_justify="left")
    for column in ("round", "where", "what", "cause"):
        table.add_column(column)
    for fault in report["faults"]:
        where = fault.get("site", "aggregator")
        table.add_row(str(fault["round"]), where, fault["what"], fault["cause"])
    return table
