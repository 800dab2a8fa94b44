"""Shows a study while it runs: rounds, each hospital's step and loss, bytes, time left."""

import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dashboard.views import NodeView, SiteView, StudyDetail
from protocol.states import StudyState

from .control import ControlPlane

POLL_SECONDS = 0.5


def follow(plane: ControlPlane, study_id: str, console: Console) -> StudyDetail:
    """Show `study_id` until it ends; Ctrl-C stops watching and leaves the study running."""
    if console.is_terminal:
        return _live(plane, study_id, console)
    return _lines(plane, study_id, console.print)


def _live(plane: ControlPlane, study_id: str, console: Console) -> StudyDetail:
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while True:
            study = plane.study(study_id)
            live.update(render(study, plane.nodes()))
            if study.state.ended:
                return study
            time.sleep(POLL_SECONDS)


def _lines(plane: ControlPlane, study_id: str, say: Callable[[str], None]) -> StudyDetail:
    """For a log or a pipe: one line for each round and each change of state."""
    shown, state = 0, None
    while True:
        study = plane.study(study_id)
        if study.state is not state:
            state = study.state
            say(f"{study_id}: {state}")
        for row in study.rounds:
            if row.finished_at is not None and row.round > shown:
                shown = row.round
                say(
                    f"round {row.round}/{study.rounds_total}: {row.sites_ok} sites, "
                    f"train loss {_number(row.train_loss)}, "
                    f"accuracy {_percent(row.eval_accuracy)}, {row.seconds or 0:.1f} s, "
                    f"{size(row.bytes_up)} up, {size(row.bytes_down)} down"
                )
        if study.state.ended:
            return study
        time.sleep(POLL_SECONDS)


def render(study: StudyDetail, nodes: list[NodeView]) -> RenderableType:
    """One picture of a study and its hospitals."""
    left = study.remaining_seconds
    head = Text.assemble(
        (study.study_id, "bold"),
        f"  {study.state}  round {study.round}/{study.rounds_total}",
        f"  accuracy {_percent(study.eval_accuracy)}",
        f"  {size(study.bytes_up)} up, {size(study.bytes_down)} down",
        "" if left is None else f"  about {_clock(left)} left",
    )
    table = Table(box=None, pad_edge=False)
    for column in ("hospital", "trainer", "step", "", "loss", "tokens/s", "up", "down"):
        table.add_column(column)
    views = {site.site: site for site in study.sites}
    for node in nodes:
        if node.enrolled and not node.revoked:
            table.add_row(*_row(node, views.get(node.site)))
    return Group(head, ProgressBar(study.rounds_total, study.rounds_done, width=60), table)


def _row(node: NodeView, site: SiteView | None) -> list[RenderableType]:
    progress = node.progress
    if progress is None:
        return [node.site, node.status, "", "", "", "", "", ""]
    loss = progress.loss if progress.loss is not None else (site.train_loss if site else None)
    return [
        node.site,
        str(progress.health.state),
        f"{progress.step}/{progress.steps}",
        ProgressBar(max(1, progress.steps), progress.step, width=16),
        _number(loss),
        f"{progress.tokens_per_second:.0f}" if progress.tokens_per_second else "",
        size(site.bytes_up) if site else "",
        size(site.bytes_down) if site else "",
    ]


def describe_end(study: StudyDetail) -> str:
    """The study's verdict as one line."""
    colour = "green" if study.state is StudyState.FINISHED else "red"
    return f"[{colour}]{study.study_id}: {study.state}[/]: {study.verdict}"


def size(count: float) -> str:
    """Bytes for people: 1.5 MB is 1,500,000 bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
