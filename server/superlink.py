"""Flower's SuperLink behind a guard with two listeners.

    python -m server.superlink --settings aggregator.toml

Public: what hospitals need of the Fleet API, over TLS. Private: Control and Runtime, on loopback,
over TLS, Control with a bearer token. Nothing of Flower is changed; see `guard` for the lists.
"""

import argparse
import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from protocol.errors import FedwardError, SettingsError
from protocol.files import write_atomic
from protocol.flower import environment, superlink_arguments
from protocol.tls import ReloadingContext

from ._flower import superlink_app
from .guard import App, PrivateGuard, PublicGuard
from .keys import NodeKeys
from .progress import ProgressForwarder
from .secrets import ensure_secret
from .settings import AggregatorSettings, ListenerSettings, load_aggregator
from .wire import WireBook

CONNECTIONS = 512  # at once on the public listener; beyond that uvicorn answers 503, which retries


class _Server(uvicorn.Server):
    """Two of these share a process, so neither may take the signals for itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: AggregatorSettings) -> None:
    """Serve both listeners until SIGTERM or SIGINT.

    Raises:
        SettingsError: a port is taken, or the certificate cannot be used.
    """
    tls = ReloadingContext(settings.tls.certificate, settings.tls.key)
    fleet_socket = _bind(settings.fleet, "fleet.port")
    private_socket = _bind(settings.private, "private.port")
    flower: App = superlink_app(_arguments(settings))
    wire = WireBook()
    write_atomic(settings.epoch, repr(wire.epoch).encode())
    forward = ProgressForwarder(settings.control_plane)
    private = PrivateGuard(flower, wire, ensure_secret(settings.control_token))
    public = PublicGuard(flower, NodeKeys(settings.registry), wire, forward)

    servers = [
        (_server(private, tls, lifespan=True), private_socket),
        (_server(public, tls, lifespan=False), fleet_socket),
    ]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _end, [server for server, _ in servers])
    watch = asyncio.create_task(tls.watch())
    try:
        await asyncio.gather(*(server.serve(sockets=[sock]) for server, sock in servers))
    finally:
        watch.cancel()
        await forward.close()


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m server.superlink", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True, help="aggregator.toml")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("flwr").propagate = False  # it has a handler; ours would add its debug lines
    try:
        settings = load_aggregator(arguments.settings)
        settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Flower reads these when it is imported, which happens in serve().
        os.environ.update(environment(settings.state / "flower" / "superlink"))
        # uvloop where it is installed: TLS and small requests are what this process is made of.
        loop_factory = uvicorn.Config("").get_loop_factory()
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(serve(settings))
    except FedwardError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def check_ports(settings: AggregatorSettings) -> None:
    """Make sure that both ports are free.

    Raises:
        SettingsError: one is not.
    """
    for listener, key in ((settings.fleet, "fleet.port"), (settings.private, "private.port")):
        _bind(listener, key).close()


def _arguments(settings: AggregatorSettings) -> list[str]:
    ensure_secret(settings.superexec_secret)
    return superlink_arguments(
        host=settings.private.host,
        port=settings.private.port,
        ca=settings.tls.ca,
        cert=settings.tls.certificate,
        key=settings.tls.key,
        database=settings.database,
        secret=settings.superexec_secret,
    )


def _server(app: App, tls: ReloadingContext, *, lifespan: bool) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            lifespan="on" if lifespan else "off",
            ssl_context_factory=lambda _config, _default: tls.context,
            access_log=False,
            log_config=None,
            proxy_headers=False,  # a client must not choose the address its rate is counted under
            server_header=False,
            ws="none",
            limit_concurrency=None if lifespan else CONNECTIONS,
            timeout_graceful_shutdown=3,
        )
    )


def _bind(listener: ListenerSettings, key: str) -> socket.socket:
    """Bind before Flower starts, so that a taken port is a sentence and not a traceback."""
    family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((listener.host, listener.port))
    except OSError as error:
        sock.close()
        why = (
            "is in use; end the process that holds it, or choose another port"
            if error.errno == errno.EADDRINUSE
            else f"cannot be used: {error.strerror or error}"
        )
        raise SettingsError(f"{key} = {listener.port}: {listener.host} {why}") from error
    sock.set_inheritable(False)
    return sock


def _end(servers: list[_Server]) -> None:
    for server in servers:
        server.should_exit = True


if __name__ == "__main__":
    sys.exit(main())
