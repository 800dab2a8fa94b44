"""Where the `fedward` command begins: `python -m fedward` is the same.

The command line imports for about a second. A Ctrl-C in that second has nothing to clean up and
must not print a traceback, so it is handled here before anything else is imported. SIGTERM, which
`timeout` and service managers send, is taken as a Ctrl-C: what was started is stopped.
"""

import os
import signal


def main() -> None:
    """Import the command line, then run it."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from .cli import main as run

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
