"""Writes Grafana's dashboards: `python -m dashboard.grafana.generate` (`--check` only compares).

The JSON in `dashboards/` is what Grafana is given; it is never edited by hand. A panel is a title,
a unit and queries over `protocol.metrics`; the layout is rows of equal panels.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Final

from .federation import FEDERATION
from .hospital import HOSPITAL
from .security import SECURITY
from .study import STUDY

FOLDER: Final = Path(__file__).parent / "dashboards"
DASHBOARDS: Final = (FEDERATION, HOSPITAL, STUDY, SECURITY)


def files() -> dict[Path, str]:
    """Each file's name and what it must hold."""
    return {
        FOLDER / f"{board.uid}.json": json.dumps(board.document(), indent=2) + "\n"
        for board in DASHBOARDS
    }


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or say which are not what they must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if one differs")
    chosen = parser.parse_args(arguments)
    stale = {
        file: text
        for file, text in files().items()
        if not file.exists() or file.read_text() != text
    }
    for file, text in stale.items():
        if not chosen.check:
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        print(f"{file.name}: {'differs' if chosen.check else 'written'}")
    return 1 if stale and chosen.check else 0


if __name__ == "__main__":
    sys.exit(main())
