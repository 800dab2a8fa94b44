"""Start a hospital's trainer:

    python -m hospital_node.trainer --site SITE.toml

It runs until SIGTERM or SIGINT. Memory: the quantized base, some 0.6 byte a parameter in NF4, and
the activations of one batch. Logs go to stderr and stay at the site.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from protocol.errors import FedwardError
from protocol.site import load_site


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trainer; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hospital_node.trainer",
        description="Trains adapters on this hospital's data; speaks only to its link.",
    )
    parser.add_argument("--site", type=Path, required=True, help="the hospital's site.toml")
    parser.add_argument("--verbose", action="store_true", help="log every step of the work")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    os.umask(0o077)  # whatever is written here is for this user alone
    try:
        from .service import Service

        Service(load_site(options.site)).run()
    except FedwardError as error:
        print(f"trainer: {error}", file=sys.stderr)
        if error.hint:
            print(f"         {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    # Not sys.exit: a worker inside a training step would be waited for.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
