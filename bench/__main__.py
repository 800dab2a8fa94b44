"""Runs the benchmarks: `python -m bench [--quick] [NAME ...]`; without a name, all of them."""

import argparse
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

# gpu needs a CUDA GPU: run it by itself
HELPERS = {"__main__", "report", "usual_way", "gpu", "substitution", "small_federation"}


def names() -> list[str]:
    """Every benchmark: the modules beside this one that have a `main`."""
    return [
        module.name
        for module in pkgutil.iter_modules([str(Path(__file__).parent)])
        if not module.ispkg and module.name not in HELPERS
    ]


def main() -> int:
    """Run each in a process of its own, so that one's memory is not another's."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"some of {', '.join(names())}")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, minutes in all")
    arguments = parser.parse_args()
    failed, began = [], time.monotonic()
    for name in arguments.name or names():
        if name not in names():
            parser.error(f"no benchmark {name!r}; there are {', '.join(names())}")
        print(f"{name}:", flush=True)
        begun = time.monotonic()
        command = [sys.executable, "-m", f"bench.{name}", *(["--quick"] * arguments.quick)]
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(name)
        print(f"{name} took {time.monotonic() - begun:.0f} s\n", flush=True)
    print(f"all took {(time.monotonic() - began) / 60:.1f} minutes")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
