"""The edge's one process: starts HAProxy, and follows its files.

    python -m fedward_edge            # EDGE_CERTS, EDGE_REGISTRY, EDGE_RUN and haproxy.cfg's own
    python -m fedward_edge health     # exit code 0 while HAProxy runs and the aggregator answers

SIGHUP reloads HAProxy itself (a changed haproxy.cfg): the old worker finishes its connections.
SIGTERM lets requests under way end, for 30 s.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from .follow import EVERY_SECONDS, Files, Follower, write_tables
from .runtime import Runtime, RuntimeApiError
from .tables import TableError

log = logging.getLogger("fedward.edge")

WAIT_SECONDS = 60.0  # for files that an init job is still writing
STOP_SECONDS = 30.0


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
    follower = Follower(files, Runtime(files.socket))
    haproxy = subprocess.Popen(["haproxy", "-W", "-db", "-f", str(config)])
    try:
        while not stop.wait(EVERY_SECONDS):
            if haproxy.poll() is not None:
                log.error("HAProxy ended with %d", haproxy.returncode)
                return 1
            if reload.is_set():
                reload.clear()
                write_tables(files)
                haproxy.send_signal(signal.SIGUSR2)
                continue
            follower.look()
    finally:
        _end(haproxy)
    return 0


def health(files: Files) -> int:
    """For HEALTHCHECK: HAProxy answers, and so does the aggregator behind it."""
    try:
        up = Runtime(files.socket).server_is_up("aggregator")
    except RuntimeApiError as error:
        print(f"HAProxy does not answer: {error}")
        return 1
    print("the aggregator is " + ("up" if up else "away"))
    return 0 if up else 1


def _end(haproxy: subprocess.Popen[bytes]) -> None:
    if haproxy.poll() is None:
        haproxy.send_signal(signal.SIGUSR1)  # no new connections; end when the last one does
        try:
            haproxy.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            haproxy.terminate()
            haproxy.wait(5)


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
