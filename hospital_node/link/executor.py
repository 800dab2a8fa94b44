"""Flower's SuperExec, which forks a warm ClientApp instead of starting a cold one.

    python -m hospital_node.link.executor DOORBELL [flower-superexec flags]

- Speed. Flower starts a Python interpreter for every message: 0.75 s of CPU before the first line
  of an app, 3.6 to 4.4 s with torch and peft. This process has imported what a ClientApp needs and
  forks, which takes milliseconds; each message still has a process of its own.
- Trust. A SuperNode runs whatever app the aggregator sends. Here the app that came is not even
  unpacked: the ClientApp is the one that the hospital installed (`client_app`).
- The wedge. A ClientApp that is killed is reported at once, not after its 60 s of silence; one that
  is asked to stop answers with a reason first.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import PushTaskOutputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.exit import exit_handler
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.retry import http_retry
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.superexec import run_superexec as superexec
from flwr.supercore.superexec.executor import LaunchResult
from flwr.supercore.superexec.executor.types import ExecutionSpec
from flwr.supernode.runtime import run_clientapp as clientapp

from protocol.flower import ERROR_PREFIX, pull_soon, replace
from protocol.states import Reason

from . import client_app
from ._wake import Doorbell

_PR_SET_PDEATHSIG = 1  # prctl(2): the signal a child gets when its parent dies
END_SECONDS = 10  # a ClientApp that was told to stop has this long to answer first
_IDLE_SECONDS = 1.0  # Flower's own interval; the doorbell makes it a fallback


class InterruptedByEndError(Exception):
    """The ClientApp was told to stop while it worked. Its text is what the aggregator sees."""


class ForkExecutor:
    """Starts ClientApps as forks of this process, and notices how they end."""

    def __init__(self) -> None:
        self._children: dict[int, ExecutionSpec] = {}

    def get_eligible_capacity(
        self, _types: set[TaskType], **_: Any
    ) -> tuple[set[TaskType], set[str]]:
        """ClientApps only: an aggregator cannot have agents or connectors run here."""
        return {TaskType.CLIENT_APP}, set()

    def wait_for_capacity(self, *_: Any, **__: Any) -> None:
        """There is always room: the SuperNode hands out one message at a time."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Fork a ClientApp for one task."""
        child = os.fork()
        if child == 0:
            _be_client_app(spec)
        self._children[child] = spec
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Collect children that ended; report those that ended without saying so themselves."""
        while self._children:
            try:
                child, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._children.clear()
                return
            if child == 0:
                return
            spec = self._children.pop(child, None)
            if spec is not None and os.waitstatus_to_exitcode(status) != 0:
                _report_death(spec)

    def close(self) -> None:
        """Ask what still runs to stop; each answers the aggregator before it does."""
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)


def _be_client_app(spec: ExecutionSpec) -> NoReturn:
    """The child: run Flower's own ClientApp runtime around the installed app, then end."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        exit_handler.registered_exit_handlers.clear()  # they belong to the parent
        _interrupt_on(signal.SIGTERM, signal.SIGINT)
        replace(clientapp, "install_from_fab", lambda *_a, **_k: None)
        replace(clientapp, "get_load_client_app_fn", lambda **_k: lambda *_a: client_app.app)
        replace(clientapp, "register_signal_handlers", _register_exit_handlers)
        certificates = Path(spec.root_certificates_path or "").read_bytes()
        clientapp.run_clientapp(spec.runtime_api_address, spec.token, spec.insecure, certificates)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - a fork must never return into the parent's code
        print(f"ClientApp ended: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _interrupt_on(*signals: signal.Signals) -> None:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        signal.alarm(END_SECONDS)  # Flower retries a reply for ever when the SuperNode is gone too
        raise InterruptedByEndError(f"{ERROR_PREFIX}{Reason.INTERRUPTED}")

    for number in signals:
        signal.signal(number, interrupt)


def _register_exit_handlers(*_: Any, exit_handlers: list[Any] | None = None, **__: Any) -> None:
    """In place of Flower's: keep its exit handlers, and not its signal handlers, which end the
    process without a reply."""
    for handler in exit_handlers or []:
        exit_handler.add_exit_handler(handler)


def _report_death(spec: ExecutionSpec) -> None:
    """Tell the SuperNode that a task's process is gone, so that it answers the aggregator."""
    client = RuntimeHttpClient.from_server_address(
        server_address=spec.runtime_api_address,
        insecure=spec.insecure,
        root_certificates=Path(spec.root_certificates_path or "").read_bytes(),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            RuntimeTokenHttpInterceptor(spec.token),
        ],
    )
    try:
        client.PushTaskOutput(
            PushTaskOutputRequest(
                sub_status=SubStatus.FAILED, details=f"{ERROR_PREFIX}{Reason.CLIENT_APP_DIED}"
            )
        )
    except Exception as error:  # noqa: BLE001 - the task may have ended properly: nothing to tell
        print(f"no report for task {spec.task_id}: {error}", file=sys.stderr, flush=True)
    finally:
        client.close()


class _WaitForBell(ModuleType):
    """Stands in for the `time` module inside Flower's SuperExec loop."""

    def __init__(self, bell: Doorbell) -> None:
        super().__init__("time")
        self._bell = bell

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, _seconds: float) -> None:
        """Wait until the SuperNode rings, or as long as Flower would."""
        self._bell.wait(_IDLE_SECONDS)


def main() -> None:
    """Start the executor; Flower's own flags follow our argument."""
    from flwr.supercore.cli.flower_superexec import flower_superexec

    bell = Doorbell(Path(sys.argv[1]))
    sys.argv = ["flower-superexec", *sys.argv[2:]]
    replace(superexec, "time", _WaitForBell(bell))
    replace(http_retry, "MAX_RETRY_DELAY", _IDLE_SECONDS)  # the SuperNode is on this machine
    pull_soon(clientapp, "pull_and_inflate_object_from_tree")
    replace(superexec, "get_executor", lambda *_a, **_k: ForkExecutor())
    flower_superexec()


if __name__ == "__main__":
    main()
