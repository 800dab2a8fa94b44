"""Flower's SuperExec, which starts a ServerApp for each run.

    python -m server.superexec [flower-superexec flags]

It finds `flwr-serverapp` through PATH, so the folder of this interpreter is put in front.
"""

import os
import sys
from pathlib import Path

from ._flower import run_superexec


def main() -> None:
    """Run the command."""
    here = str(Path(sys.executable).parent)
    os.environ["PATH"] = here + os.pathsep + os.environ.get("PATH", "")
    run_superexec(sys.argv[1:])


if __name__ == "__main__":
    main()
