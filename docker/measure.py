"""Prints what docs/deployment.md says of the images: their sizes, and how long a start takes.

    python docker/measure.py            # sizes
    python docker/measure.py --start    # and a federation, from nothing to a finished first study

The images are those of FEDWARD_VERSION (0.1.0) and have to be built. `--start` needs the two ports
of compose.yaml; its project is `fedward-measure`, with volumes of its own that are removed.
"""

import argparse
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

IMAGES = ("edge", "cli", "control-plane", "link", "aggregator", "trainer")
BASE = "python:3.11-slim-bookworm"
PROJECT = "fedward-measure"
ROOT = Path(__file__).parents[1]


def docker(*words: str) -> str:
    """What docker prints."""
    command = ["docker", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def size(image: str) -> float:
    """What an image takes on disk, in bytes, its shared layers included."""
    return float(docker("image", "inspect", "-f", "{{.Size}}", image))


def sizes() -> None:
    """Print a table of the images."""
    version = os.environ.get("FEDWARD_VERSION", "0.1.0")
    print("| image | size | beyond the Python base |\n|---|---|---|")
    for name in IMAGES:
        whole = size(f"fedward/{name}:{version}")
        print(f"| {name} | {whole / 1e6:.0f} MB | {(whole - size(BASE)) / 1e6:.0f} MB |")


def events() -> subprocess.Popen[str]:
    """The engine's own record of what starts, is well, and ends, from now on."""
    wanted = ("type=container", f"label=com.docker.compose.project={PROJECT}",
              "event=start", "event=health_status", "event=die")  # fmt: skip
    filters = [word for one in wanted for word in ("--filter", one)]
    command = ["docker", "events", "--format", "{{json .}}", *filters]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def happenings(stream: subprocess.Popen[str]) -> Iterator[tuple[float, str, str, str]]:
    """When, which service, what, and with which exit status."""
    assert stream.stdout is not None
    for line in stream.stdout:
        event = json.loads(line)
        attributes = event["Actor"]["Attributes"]
        service = attributes["com.docker.compose.service"]
        yield event["timeNano"] / 1e9, service, event["Action"], attributes.get("exitCode", "")


def start() -> None:
    """Start everything on cold volumes; print a table of the services and the totals."""
    down = ("compose", "-p", PROJECT, "down", "--volumes", "--remove-orphans")
    docker(*down)
    stream, begin = events(), time.time()

    def up() -> None:
        """If it fails there will be no more to follow."""
        command = ["docker", "compose", "-p", PROJECT, "up", "-d"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(done.stderr[-2000:])
            stream.terminate()

    thread = threading.Thread(target=up)
    thread.start()
    try:
        report(stream, begin)
    finally:
        stream.terminate()
        thread.join()
        docker(*down)


def report(stream: subprocess.Popen[str], begin: float) -> None:
    """Follow the start until the first study has ended, and print it."""
    begun: dict[str, float] = {}
    well: dict[str, float] = {}
    for when, service, what, status in happenings(stream):
        if what == "start":
            begun.setdefault(service, when)
        elif what == "health_status: healthy":
            well.setdefault(service, when)
        elif (service, what) == ("first-study", "die"):
            end = f"first study ended after {when - begin:.0f} s, exit status {status}"
            break
    else:
        raise SystemExit("the first study did not end")
    print("\n| service | started after | well after its own start |\n|---|---|---|")
    for service, when in sorted(well.items(), key=lambda item: item[1]):
        print(f"| {service} | {begun[service] - begin:.0f} s | {when - begun[service]:.1f} s |")
    print(f"\n`docker compose up -d`: all well after {max(well.values()) - begin:.0f} s; {end}")


def main() -> None:
    """Print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--start", action="store_true", help="start a federation and time it")
    options = parser.parse_args()
    sizes()
    if options.start:
        start()


if __name__ == "__main__":
    main()
