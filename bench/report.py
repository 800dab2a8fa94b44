"""How every benchmark prints its table and writes its figures."""

import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

# Into a file or a pipe the tables need more than the 80 columns that rich takes there.
console = Console() if sys.stdout.isatty() else Console(width=120)
RESULTS = Path(__file__).parent / "results"


def write_results(
    name: str,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    figures: object,
) -> None:
    """Print a table and write `results/NAME.json` with the figures and the machine."""
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    RESULTS.mkdir(exist_ok=True)
    machine = {"python": platform.python_version(), "processor": platform.machine()}
    (RESULTS / f"{name}.json").write_text(
        json.dumps({"machine": machine, "figures": figures}, indent=1)
    )
