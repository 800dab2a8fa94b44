"""`python -m dashboard --settings control-plane.toml`: serve the control plane."""

import argparse
import logging
import signal
import socket
import sys
from pathlib import Path

import uvicorn

from protocol.errors import FedwardError, SettingsError
from protocol.tls import ReloadingContext

from .app import create_app
from .plane import Plane
from .settings import ControlPlaneSettings, load_control_plane

log = logging.getLogger("dashboard")


def main(arguments: list[str] | None = None) -> int:
    """Read the settings, open the database, serve."""
    parser = argparse.ArgumentParser(prog="python -m dashboard", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True, help="control-plane.toml")
    parser.add_argument("--check", action="store_true", help="check the settings and end")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        settings = load_control_plane(chosen.settings)
        if chosen.check:
            return 0
        return _serve(settings)
    except FedwardError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"  try: {error.hint}", file=sys.stderr)
        return error.exit_code


class _Server(uvicorn.Server):
    """Ends the live streams first: they would otherwise hold the shutdown up."""

    def __init__(self, config: uvicorn.Config, plane: Plane) -> None:
        super().__init__(config)
        self._plane = plane

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._plane.bell.close()
        await super().shutdown(sockets)


def _serve(settings: ControlPlaneSettings) -> int:
    listener = _bind(settings)
    listen = settings.listen
    tls = ReloadingContext(listen.certificate, listen.key)
    plane = Plane(settings, each_second=tls.reload_if_changed)
    config = uvicorn.Config(
        create_app(plane),
        ssl_context_factory=lambda _config, _default: tls.context,
        log_config=None,
        access_log=False,
        server_header=False,
        # Behind a proxy all clients would share its address; but an address from a header can be
        # made up, and the address is what bounds guessing. So headers are not believed.
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
    server = _Server(config, plane)
    # uvicorn raises a signal again after it has shut down cleanly; that would make a clean end
    # look like a death by signal.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    log.info("control plane on https://%s:%d", listen.host, listen.port)
    server.run(sockets=[listener])
    return 0 if server.started else 2


def _bind(settings: ControlPlaneSettings) -> socket.socket:
    host, port = settings.listen.host, settings.listen.port
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"listen.host = {host!r}, listen.port = {port}: cannot listen there: "
            f"{error.strerror or error}; choose a free port of this machine"
        ) from error
    return listener


if __name__ == "__main__":
    sys.exit(main())
