"""The link: keeps a SuperNode, its executor and the progress report going.

    python -m hospital_node.link --site site.toml

It connects out to one address and listens on loopback only. It ends on SIGTERM or Ctrl-C, and stays
up through everything else: a refused key, an aggregator that is away, a child that dies.
"""

import argparse
import fcntl
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import IO

from protocol.children import Child, python_module, stop_all
from protocol.errors import FedwardError, SettingsError
from protocol.files import write_atomic
from protocol.flower import environment, superexec_arguments, supernode_arguments
from protocol.site import SiteSettings, load_site

from .client_app import variables
from .report import Reporter
from .runtime_tls import write_loopback_certificate

log = logging.getLogger("fedward.link")

TEND_SECONDS = 0.25


class Link:
    """The processes of one hospital's link and the files they share."""

    def __init__(self, site: SiteSettings, site_file: Path) -> None:
        self.site = site
        self._aggregator = site.aggregator.address
        self.folder = site.state / "link"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self._lock = _lock(self.folder / "link.lock", site.name)
        self._secret = self.folder / "superexec.secret"
        self._node_id = self.folder / "node-id"
        self._doorbell = self.folder / "doorbell"
        self._port = 0
        for home in ("supernode", "executor"):  # Flower's homes live as long as the link does
            shutil.rmtree(self.folder / home, ignore_errors=True)
            (self.folder / home).mkdir()
        write_atomic(self._secret, secrets.token_hex(32).encode(), mode=0o600)
        self._certificate, self._key = write_loopback_certificate(self.folder)
        self.forwarder: Child | None = None
        if site.aggregator.client_certificate is not None:
            self.forwarder, self.site = self._through_forwarder(site_file)
        self.supernode = Child(
            "SuperNode", self._supernode_command, environment(self.folder / "supernode")
        )
        self.executor = Child(
            "executor",
            self._executor_command,
            environment(self.folder / "executor", variables(site.trainer)),
        )

    def _through_forwarder(self, site_file: Path) -> tuple[Child, SiteSettings]:
        """A forwarder, and the settings of everything else here: it connects to that one."""
        port = _free_port()
        command = python_module(
            "hospital_node.link.forwarder",
            *("--site", str(site_file), "--port", str(port)),
            *("--certificate", str(self._certificate), "--key", str(self._key)),
        )
        here = {"address": f"127.0.0.1:{port}", "ca_certificate": self._certificate}
        aggregator = self.site.aggregator.model_copy(update=here)
        for name in ("NO_PROXY", "no_proxy"):  # a site's HTTPS_PROXY must not capture loopback
            os.environ[name] = environment(self.folder)[name]
        site = self.site.model_copy(update={"aggregator": aggregator})
        return Child("forwarder", lambda: command), site

    def _supernode_command(self) -> list[str]:
        self._port = _free_port()
        return python_module(
            "hospital_node.link.supernode",
            str(self._node_id),
            str(self._doorbell),
            *supernode_arguments(
                superlink=self.site.aggregator.address,
                ca=self.site.aggregator.ca_certificate,
                node_key=self.site.link.node_key,
                port=self._port,
                runtime_ca=self._certificate,
                runtime_cert=self._certificate,
                runtime_key=self._key,
                secret=self._secret,
            ),
        )

    def _executor_command(self) -> list[str]:
        return python_module(
            "hospital_node.link.executor",
            str(self._doorbell),
            *superexec_arguments(
                runtime_api=f"127.0.0.1:{self._port}", ca=self._certificate, secret=self._secret
            ),
        )

    def run(self, stop: threading.Event) -> None:
        """Keep everything going until `stop` is set."""
        if self.forwarder is not None:
            self.forwarder.start()
        reporter = Reporter(self.site)
        reporter.start()
        self.supernode.start()
        self.executor.start()
        log.info("%s: linked to %s", self.site.name, self._aggregator)
        try:
            while not stop.wait(TEND_SECONDS):
                if self.forwarder is not None:
                    self.forwarder.tend()
                if self.supernode.tend():
                    self.executor.stop()  # its task tokens and its port died with the SuperNode
                elif self.supernode.pid is not None:
                    self.executor.tend()
        finally:
            reporter.stop()
            # The forwarder last: a SuperNode says goodbye through it.
            children = [self.executor, self.supernode, self.forwarder]
            stop_all([child for child in children if child is not None])
            self._lock.close()


def _lock(path: Path, name: str) -> IO[str]:
    """Hold `path` for as long as this process lives: two links with one key evict each other."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise SettingsError(
            f"{path}: another link of {name} is running with this state folder; stop it first"
        ) from error
    return file


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _check(site: SiteSettings) -> None:
    """Refuse to start on files that Flower would only complain about in its own words."""
    files = [
        (site.link.node_key, "this site's node key"),
        (site.aggregator.ca_certificate, "the aggregator's CA certificate"),
        (site.aggregator.client_certificate, "this site's client certificate"),
        (site.aggregator.client_key, "this site's client key"),
    ]
    for file, what in files:
        if file is None:
            continue
        if not os.access(file, os.R_OK):
            raise SettingsError(
                f"{file}: cannot read {what}", hint="enrol this site, or correct the path"
            )


def main() -> int:
    """Parse the one argument, run until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m hospital_node.link", description=__doc__)
    parser.add_argument("--site", type=Path, required=True, help="this hospital's site.toml")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    try:
        site = load_site(arguments.site)
        _check(site)
        Link(site, arguments.site).run(stop)
    except FedwardError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
