"""Starts and follows studies from a container: `docker compose run --rm cli run study.toml`.

    run FILE [--once]   submit; print each round; exit 0 only if it finished
    list                every study and hospital
    stop ID             ask for a study to be stopped
    token               print the coordinator's token, for the web page

`--once` submits only if there is no study of that name yet: the demo's first study starts by
itself, and a restart of the stack does not start it again.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fedward.control import Address, ControlPlane, ControlPlaneError
from protocol.errors import FedwardError
from protocol.states import StudyState
from protocol.study import load_study

READY_SECONDS = 180.0
POLL_SECONDS = 1.0


def address() -> Address:
    """The control plane of this topology."""
    folder = Path(os.environ.get("FEDWARD_CLI", "/cli"))
    url = os.environ.get("FEDWARD_URL", "https://control-plane:9443")
    return Address(url, folder / "ca.crt", folder / "coordinator.token")


def run(plane: ControlPlane, file: Path, *, once: bool) -> int:
    """Submit a study and follow it."""
    settings = load_study(file)
    plane.wait_until_ready(READY_SECONDS)
    known = [study.study_id for study in plane.studies() if study.name == settings.name]
    study_id = known[0] if once and known else plane.submit(settings)
    print(f"{study_id}: {'continues' if once and known else 'submitted'}", flush=True)
    return follow(plane, study_id)


def follow(plane: ControlPlane, study_id: str) -> int:
    """Print a line for each change of round or state until the study ends."""
    told = ""
    while True:
        try:
            study = plane.study(study_id)
        except ControlPlaneError as error:
            line, ended, state = str(error), False, None
        else:
            state, ended = study.state, study.state.ended
            line = f"{state}, round {study.round} of {study.rounds_total}"
        if line != told:
            print(f"{time.strftime('%H:%M:%S')} {study_id}: {line}", flush=True)
            told = line
        if ended:
            return 0 if state is StudyState.FINISHED else 1
        time.sleep(POLL_SECONDS)


def show(plane: ControlPlane) -> int:
    """Studies and hospitals, a line each."""
    for study in plane.studies():
        print(f"{study.study_id}  {study.state}  round {study.round} of {study.rounds_total}")
    for node in plane.nodes():
        print(f"{node.site}  {'up' if node.up else 'down'}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and dispatch; errors are sentences."""
    parser = argparse.ArgumentParser(prog="cli")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("run", help="submit a study and follow it")
    verb.add_argument("file", type=Path, help="study.toml")
    verb.add_argument("--once", action="store_true", help="not if there is one of that name")
    verbs.add_parser("list", help="every study and hospital")
    verb = verbs.add_parser("stop", help="stop a study")
    verb.add_argument("study_id", help="as `list` shows it")
    verbs.add_parser("token", help="print the coordinator's token")
    options = parser.parse_args(arguments)
    try:
        where = address()
        if options.verb == "token":
            print(where.token_file.read_text().split()[0])
            return 0
        plane = ControlPlane(where)
        if options.verb == "run":
            return run(plane, options.file, once=options.once)
        if options.verb == "stop":
            plane.stop(options.study_id)
            return 0
        return show(plane)
    except FedwardError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
