"""Flower's SuperNode, started with its known traps closed.

    python -m hospital_node.link.supernode NODE_ID_FILE DOORBELL [flower-supernode flags]

What is changed, each by replacing one name of flwr 1.41 and nothing in its files:

- Polling. An idle SuperNode asks for work every 3 s and looks for a ClientApp's reply every 0.5 s;
  that alone is 2 to 3 s of every round. Here a node that worked lately asks five times a second
  and slows down to Flower's 3 s over five quiet minutes, and a reply is noticed at once.
- The wedge. A ClientApp that ends without a reply (SIGTERM, eviction) leaves the SuperNode waiting
  for ever, `online` all the while. Here a failed task is answered with an error reply.
- Quick restarts. A killed SuperNode is refused for 60 s, because the aggregator still counts it as
  online. Here it first deactivates its own former self, whose id it keeps in NODE_ID_FILE.
- Silence. A refused signature (unknown or revoked key, or a clock that is off) ends a SuperNode
  with exit code 0 and no reason. Here it says which, and exits with REFUSED.
"""

import json
import re
import sys
import threading
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Error
from flwr.common.constant import ErrorCode, Status, SubStatus
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
)
from flwr.supercore.retry import http_retry
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.cli.flower_supernode import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.nodestate import in_memory_nodestate, nodestate_factory

from protocol.files import write_atomic
from protocol.flower import ERROR_PREFIX, pull_soon, replace

from ._wake import ring

_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z")

REFUSED = 4  # exit code: the aggregator does not accept this node
CLOCK_LIMIT_SECONDS = 5.0  # Flower accepts a timestamp up to 5 s in its future

FIRST_RETRY_SECONDS = 0.25
LAST_RETRY_SECONDS = 8.0
UNKNOWN_KEY = (
    "the aggregator does not let this node in yet: it does not know its key, or a copy of the key "
    "is in use elsewhere; trying again until it does"
)

FAST_POLL_SECONDS = 0.2
IDLE_POLL_SECONDS = 3.0  # Flower's own
QUIET_SECONDS = 300.0  # quiet time after which polling is as slow as Flower's


class Pace:
    """Stands in for the `time` module inside Flower's SuperNode loop."""

    def __init__(self) -> None:
        self._changed = threading.Event()
        self._active = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def changed(self) -> None:
        """A reply or a part of it arrived."""
        self._changed.set()

    def idle(self) -> None:
        """Called when the node has no message under way; see `NodeState.drop_abandoned`."""

    def sleep(self, seconds: float) -> None:
        """Flower's loop sleeps 3 s when it has no work and less when it waits for a reply."""
        if seconds < IDLE_POLL_SECONDS:
            self._active = time.monotonic()
            self._changed.wait(seconds)
            self._changed.clear()
            return
        self.idle()
        quiet = time.monotonic() - self._active
        time.sleep(
            min(
                IDLE_POLL_SECONDS, max(FAST_POLL_SECONDS, IDLE_POLL_SECONDS * quiet / QUIET_SECONDS)
            )
        )


class NodeState(in_memory_nodestate.InMemoryNodeState):
    """Flower's node state, with a reply for every message and a bell for every change."""

    pace: Pace
    doorbell: Path

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pace.idle = self.drop_abandoned  # type: ignore[method-assign]

    def drop_abandoned(self) -> None:
        """Forget a message that Flower gave up on while it was still downloading it.

        That happens when a run ends in that moment. Flower leaves the message and its task behind:
        the ClientApp waits for objects that never come, and its late error reply is then taken for
        the answer to the next message, whose own answer waits for the message after that. A node
        without work has no message, so whatever is found here is such a one.
        """
        with self.lock_msg_store:
            runs = {entry.message.metadata.run_id for entry in self.msg_store.values()}
        if not runs:
            return
        for task in self.get_tasks():
            if task.run_id in runs and task.status.status != Status.FINISHED:
                super().finish_task(task.task_id, SubStatus.FAILED, "the run ended")
        self.delete_messages()
        self.object_store.clear()

    def create_task(self, *args: Any, **kwargs: Any) -> int | None:
        """Tell the executor that there is work."""
        task = super().create_task(*args, **kwargs)
        ring(self.doorbell)
        return task

    def finish_task(self, task_id: int, sub_status: str, details: str) -> bool:
        """Answer the aggregator when the executor reports a ClientApp that ended without doing so.

        Only the executor's reports carry our prefix: a ClientApp that failed by itself has already
        replied, and an error made here could then fall on the next round's message.
        """
        finished = super().finish_task(task_id, sub_status, details)
        tasks = self.get_tasks(task_ids=[task_id]) if finished else []
        if tasks and details.startswith(ERROR_PREFIX):
            run_id = tasks[0].run_id
            self.get_messages_legacy(run_ids=[run_id], is_reply=False)  # marks them as taken
            self._store_error_replies(
                {run_id}, Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, details)
            )
        self.pace.changed()
        return finished

    def store_message_and_object_tree(self, *args: Any, **kwargs: Any) -> Any:
        """Wake the loop that waits for a reply."""
        stored = super().store_message_and_object_tree(*args, **kwargs)
        self.pace.changed()
        return stored

    def store_object(self, *args: Any, **kwargs: Any) -> Any:
        """Wake the loop that waits for a reply's parts."""
        stored = super().store_object(*args, **kwargs)
        self.pace.changed()
        return stored


class Client(FleetHttpClient):
    """Flower's Fleet client, which remembers who it was and says why it is refused."""

    node_id_file: Path
    refusal: str = ""
    told: bool = False

    def ActivateNode(self, request: ActivateNodeRequest) -> ActivateNodeResponse:
        """Activate, as often as it takes: an aggregator that starts up enrols its nodes last."""
        wait = FIRST_RETRY_SECONDS
        while True:
            try:
                response = super().ActivateNode(request)
            except httpx.HTTPStatusError as error:
                if error.response.status_code != httpx.codes.PRECONDITION_FAILED:
                    raise
                self._end_former_self()
                time.sleep(wait)
                wait = min(LAST_RETRY_SECONDS, wait * 2)
            else:
                write_atomic(self.node_id_file, str(response.node_id).encode())
                return response

    def _end_former_self(self) -> None:
        """Deactivate the process that had this key before us and was killed, if there was one.

        A copy of the key elsewhere has another folder, so no id to end ours with.
        """
        former = _read_node_id(self.node_id_file)
        if former is not None:
            try:
                self.DeactivateNode(DeactivateNodeRequest(node_id=former))
                return
            except httpx.HTTPStatusError:
                pass  # it was not active: then it is the key that is not known
        if not Client.told:
            Client.told = True
            print(UNKNOWN_KEY, file=sys.stderr, flush=True)

    def _send(self, context: Any, *, stream: bool = False) -> httpx.Response:
        response = super()._send(context, stream=stream)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            Client.refusal = explain_refusal(response)
            print(Client.refusal, file=sys.stderr, flush=True)
        return response


def explain_refusal(response: httpx.Response) -> str:
    """Say why an aggregator answers 401: it tells of a revocation, and its Date header the time."""
    when = _revoked_at(response)
    if when:
        return (
            f"refused by the aggregator: this hospital was revoked at {when} (UTC); nothing of it "
            "is accepted from then on. Ask the coordinator why; to come back, it enrols again with "
            "`fedward node enrol --new-keys`"
        )
    offset = _clock_offset(response)
    if offset is not None and abs(offset) > CLOCK_LIMIT_SECONDS:
        direction = "ahead of" if offset > 0 else "behind"
        return (
            f"refused by the aggregator: this machine's clock is {abs(offset):.0f} s {direction} "
            "the aggregator's, and signatures hold for seconds; run NTP on both, then restart"
        )
    return (
        "refused by the aggregator: this node's key is not enrolled there, or was revoked; ask the "
        "coordinator, who sees it in the list of nodes"
    )


def _revoked_at(response: httpx.Response) -> str:
    """When the guard says that this site was revoked; empty when it says something else."""
    try:
        body = json.loads(response.read())
        when = str(body["revoked_at"]) if body["code"] == "revoked" else ""
        return when if _MOMENT.fullmatch(when) else ""
    except (ValueError, KeyError, TypeError, RecursionError, httpx.HTTPError):
        return ""


def _clock_offset(response: httpx.Response) -> float | None:
    try:
        return time.time() - parsedate_to_datetime(response.headers["date"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None


def _read_node_id(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def main() -> None:
    """Start the SuperNode; Flower's own flags follow our two arguments."""
    node_id_file, doorbell = Path(sys.argv[1]), Path(sys.argv[2])
    sys.argv = ["flower-supernode", *sys.argv[3:]]
    pace = Pace()
    Client.node_id_file = node_id_file
    NodeState.pace, NodeState.doorbell = pace, doorbell
    replace(start_client_internal, "time", pace)
    pull_soon(start_client_internal, "pull_objects")
    replace(http_retry, "MAX_RETRY_DELAY", LAST_RETRY_SECONDS)
    replace(fleet_http_connection, "FleetHttpClient", Client)
    replace(nodestate_factory, "InMemoryNodeState", NodeState)
    try:
        flower_supernode()
    except SystemExit as end:
        sys.exit(REFUSED if Client.refusal else end.code)


if __name__ == "__main__":
    main()
