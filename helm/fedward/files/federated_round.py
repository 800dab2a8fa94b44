"""`helm test`: a small study of the embedded model over the demo hospitals, and its result.

    python federated_round.py --url https://...:9443 --rounds 2 --sites hospital-a,hospital-b

Ends with 0 only if every round had every hospital, and adapters and losses came of it.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dashboard.views import StudyDetail
from fedward.control import Address, ControlPlane
from fedward.demo import demo_study
from protocol.errors import FedwardError
from protocol.states import StudyState
from protocol.study import StudySettings

CA = Path("/public/ca.crt")
TOKEN = Path("/secrets/tokens/coordinator.token")


def study(rounds: int, sites: list[str]) -> StudySettings:
    """The demo's study, shorter: enough steps that the loss must fall."""
    demo = demo_study(Path("embedded"))
    return demo.model_copy(
        update={
            "name": "helm-test",
            "sites": tuple(sites),
            "training": demo.training.model_copy(update={"steps": 8}),
            "evaluation": demo.evaluation.model_copy(
                update={"lone_baseline": False, "max_examples": 120}
            ),
            "rounds": demo.rounds.model_copy(update={"count": rounds, "minimum_sites": len(sites)}),
        }
    )


def judge(detail: StudyDetail, sites: list[str]) -> Iterator[str]:
    """What is not as it should be, one sentence each."""
    if detail.rounds_done != detail.rounds_total:
        yield f"{detail.rounds_done} of {detail.rounds_total} rounds are done"
    for view in detail.sites:
        if view.rounds_ok < detail.rounds_total:
            yield f"{view.site} was in {view.rounds_ok} rounds of {detail.rounds_total}"
    missing = set(sites) - {view.site for view in detail.sites}
    if missing:
        yield f"{', '.join(sorted(missing))} took no part"
    if detail.train_loss is None or not math.isfinite(detail.train_loss):
        yield f"the training loss is {detail.train_loss}"
    if detail.bytes_up == 0 or detail.bytes_down == 0:
        yield "no adapter has crossed the wire"


def main() -> int:
    """Submit, watch, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--sites", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    chosen = parser.parse_args()
    sites = chosen.sites.split(",")
    plane = ControlPlane(Address(chosen.url, CA, TOKEN))
    until = time.monotonic() + chosen.seconds
    try:
        plane.wait_until_ready(60)
        study_id = plane.submit(study(chosen.rounds, sites))
        print(f"submitted {study_id}", flush=True)
        told = ""
        while True:
            detail = plane.study(study_id)
            line = f"{detail.state.value}: {detail.rounds_done} of {chosen.rounds} rounds done"
            if line != told:
                print(line, flush=True)
                told = line
            if detail.state.ended:
                break
            if time.monotonic() > until:
                print(f"not finished after {chosen.seconds:.0f} s", file=sys.stderr)
                return 1
            time.sleep(1)
    except FedwardError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if detail.state is not StudyState.FINISHED:
        print(f"{study_id}: {detail.state.value}: {detail.verdict}", file=sys.stderr)
        return 1
    faults = list(judge(detail, sites))
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"held-out loss {detail.eval_loss}, accuracy {detail.eval_accuracy}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
