"""For container health checks: is this half of the hospital's node well?

    python -m hospital_node.probe link    /var/lib/fedward    # the aggregator has answered lately
    python -m hospital_node.probe trainer /var/lib/fedward    # data and keys are read, it can work
    python -m hospital_node.probe alive   /var/lib/fedward    # trainer only: it answers at all

The standard library alone: a check runs every few seconds, and importing the node's own modules
would cost half a second of a CPU each time.
"""

import json
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any, Final

# A node asks for work every few seconds, also while its trainer is busy; the forwarder writes what
# it knows every five.
SILENT_SECONDS: Final = 60.0
ANSWER_SECONDS: Final = 5.0
# protocol.framing's head, and its kinds STATUS and PROGRESS; a test holds the two together.
HEAD: Final = struct.Struct(">BIHQ")
STATUS: Final = 3
PROGRESS: Final = 4
MAX_HEADER: Final = 1 << 20


def link(state: Path) -> str:
    """A sentence if the aggregator has not answered lately; empty if it has.

    A link without a forwarder (no client certificate) leaves no such trace, and counts as well
    once it is registered.
    """
    file = state / "link" / "forwarder.json"
    if not file.exists():
        registered = (state / "link" / "node-id").exists()
        return "" if registered else "the aggregator has not accepted this node yet"
    try:
        counters = json.loads(file.read_text())
        answered = float(counters["last_answer_at"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{file}: {error}"
    if counters.get("trouble"):
        return str(counters["trouble"])
    if not answered:
        return "the aggregator has not answered yet"
    silent = time.time() - answered
    return f"the aggregator is silent for {silent:.0f} s" if silent > SILENT_SECONDS else ""


def trainer(state: Path) -> str:
    """A sentence if the trainer does not answer or says that it is broken."""
    try:
        health = ask(state / "trainer.sock")["health"]
        if health["state"] == "broken":
            return f"the trainer cannot work: {health.get('reason')}; its log says more"
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        return f"the trainer does not answer: {error}"
    return ""


def alive(state: Path) -> str:
    """A sentence if the trainer does not answer at all; a broken one that answers is alive."""
    try:
        ask(state / "trainer.sock")
    except (OSError, ValueError, TypeError, struct.error) as error:
        return f"the trainer does not answer: {error}"
    return ""


def ask(path: Path) -> dict[str, Any]:
    """The trainer's progress record.

    Raises:
        OSError: nobody listens, or not in time.
        ValueError: an answer that is none.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.settimeout(ANSWER_SECONDS)
        stream.connect(str(path))
        stream.sendall(HEAD.pack(STATUS, 0, 0, 0))
        with stream.makefile("rb") as reader:
            kind, size, *rest = HEAD.unpack(reader.read(HEAD.size))
            if kind != PROGRESS or size + sum(rest) > MAX_HEADER:
                raise ValueError(f"a frame of kind {kind} with {size} bytes")
            record = json.loads(reader.read(size))
            reader.read(sum(rest))  # to the end, or the trainer logs a connection that broke
    return dict(record)  # TypeError, ValueError: not a record


CHECKS: Final = {"link": link, "trainer": trainer, "alive": alive}


def main() -> int:
    """0 if all is well; else 1 and a sentence."""
    if len(sys.argv) != 3 or sys.argv[1] not in CHECKS:
        print(f"usage: python -m hospital_node.probe {'|'.join(CHECKS)} STATE", file=sys.stderr)
        return 2
    trouble = CHECKS[sys.argv[1]](Path(sys.argv[2]))
    if trouble:
        print(trouble)
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main())
