"""The edge's one process: starts HAProxy, and follows its files.

    python -m fedward_edge            # EDGE_CERTS, EDGE_REGISTRY, EDGE_RUN and haproxy.cfg's own
    python -m fedward_edge health     # exit code 0 while HAProxy runs and the aggregator answers

SIGHUP reloads HAProxy, for a changed haproxy.cfg; changed certificates and lists need no signal.
SIGTERM lets requests under way end, for 10 s.
"""

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from .follow import EVERY_SECONDS, Files, Follower, HAProxy, ReloadError, write_tables
from .runtime import Runtime, RuntimeApiError
from .tables import TableError

log = logging.getLogger("fedward.edge")

WAIT_SECONDS = 60.0  # for files that an init job is still writing
STOP_SECONDS = 10.0


def files_from_environment() -> Files:
    """Where everything lies, with the same defaults as haproxy.cfg."""
    certs = Path(os.environ.get("EDGE_CERTS", "/certs"))
    return Files(
        certs=certs,
        registry=Path(os.environ.get("EDGE_REGISTRY", str(certs / "registry.json"))),
        run=Path(os.environ.get("EDGE_RUN", "/run/edge")),
    )


def wait_for(files: Files, seconds: float) -> str:
    """Wait until every input can be read; a sentence when one cannot."""
    until = time.monotonic() + seconds
    while True:
        missing = [path for path in files.inputs() if not os.access(path, os.R_OK)]
        if not missing:
            return ""
        if time.monotonic() > until:
            return f"{missing[0]}: cannot be read; the edge needs it to start"
        time.sleep(0.5)


def serve(files: Files, config: Path) -> int:
    """Run HAProxy until it ends or we are told to stop."""
    stop, reload = threading.Event(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, lambda *_: reload.set())
    write_tables(files)
    haproxy = HAProxy(config, Runtime(files.socket))
    follower = Follower(files, haproxy)
    try:
        while not stop.wait(EVERY_SECONDS):
            if haproxy.ended is not None:
                log.error("HAProxy ended with %d", haproxy.ended)
                return 1
            follower.look()
            if reload.is_set():
                reload.clear()
                _reload(haproxy)
    finally:
        haproxy.stop(STOP_SECONDS)
    return 0


def _reload(haproxy: HAProxy) -> None:
    try:
        haproxy.reload()
    except ReloadError as error:
        log.error("not reloaded: %s", error)


def health(files: Files) -> int:
    """For HEALTHCHECK: HAProxy answers, and so does the aggregator behind it."""
    try:
        up = Runtime(files.socket).server_is_up("aggregator")
    except RuntimeApiError as error:
        print(f"HAProxy does not answer: {error}")
        return 1
    print("the aggregator is " + ("up" if up else "away"))
    return 0 if up else 1


def main() -> int:
    """Dispatch on the one optional argument."""
    logging.basicConfig(level=logging.INFO, format="edge: %(message)s", stream=sys.stderr)
    files = files_from_environment()
    if sys.argv[1:] == ["health"]:
        return health(files)
    trouble = wait_for(files, WAIT_SECONDS)
    if trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return 2
    try:
        return serve(files, Path(os.environ.get("EDGE_CONFIG", "/etc/haproxy/haproxy.cfg")))
    except (TableError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
