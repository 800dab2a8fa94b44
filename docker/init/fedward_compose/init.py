"""Makes a federation's keys and settings once, and gives each container its own and nothing else.

    python -m fedward_compose.init                  # what is missing is made, the rest is kept
    python -m fedward_compose.init --every 21600    # and again every six hours, for renewals

With --every it also hands out at once what `fedward certs` changes in /pki: a hospital that was
approved or revoked, a certificate that was rotated.

    /pki                  the CA, every key            this job alone
    /out/edge             server pair, roots, list, registry
    /out/aggregator       aggregator.toml, TLS pair, study key, registry, its token
    /out/control-plane    control-plane.toml, TLS pair, registry, certificates to watch, tokens/
    /out/monitoring       the monitoring's TLS, the operator's certificate and token, a password
    /out/cli              the coordinator's token and certificate, demo-study.toml
    /out/<site>-link      site.toml, node key, client pair
    /out/<site>-trainer   site.toml, signing key
    /out/<site>-data      the demo's rows              in the demo only
    /out/model            the demo's base model        in the demo only

A container that is not in the topology has no volume there, and is left out.
"""

import argparse
import datetime as dt
import logging
import os
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from cryptography import x509

import fedward.embedded
from certs import CA, CertError
from certs.local import FederationPaths, make_federation
from fedward.embedded import DEMO
from fedward.embedded.corpus import write_hospital_data
from protocol.control import Role
from protocol.errors import FedwardError, SettingsError
from protocol.files import write_atomic

log = logging.getLogger("fedward.init")

MONITORS = ("prometheus", "alertmanager", "grafana")
# For promtool and amtool, whose health checks have to show a certificate as everybody else.
CLIENT_YML = b"""tls_config:
  ca_file: /etc/fedward/ca.crt
  cert_file: /etc/fedward/operator.crt
  key_file: /etc/fedward/operator.key
"""
SHARED = 0o640  # readable by the group that Prometheus and Alertmanager are put in
PRIVATE = 0o600
SOCKET = "/run/fedward/trainer.sock"
REPORT_SECONDS = 2.0
# A revocation is to be in force within 10 s; the edge looks every second too.
FOLLOW_SECONDS = 1.0


@dataclass(frozen=True)
class Plan:
    """Who is in the federation, and under which names it is reached."""

    sites: tuple[str, ...]
    names: tuple[str, ...]
    pki: Path
    out: Path
    demo: bool

    def folder(self, name: str) -> Path | None:
        """A container's folder, if that container is in this topology.

        The image has every folder, for the owner of a new volume; without a volume it is on the
        read-only root.
        """
        path = self.out / name
        return path if path.is_dir() and os.access(path, os.W_OK) else None


def make(plan: Plan) -> FederationPaths:
    """Make, renew and hand out; safe to repeat while everything runs.

    Raises:
        CertError: a key in /pki is damaged.
        OSError: a volume cannot be written.
    """
    names = ("localhost", "127.0.0.1", "edge", "aggregator", "control-plane", *plan.names)
    paths = make_federation(plan.pki / "certs", plan.sites, tuple(dict.fromkeys(names)))
    hand_out(plan, paths)
    return paths


def hand_out(plan: Plan, paths: FederationPaths) -> None:
    """Bring every container's folder up to date with /pki.

    Raises:
        OSError: a volume cannot be written.
    """
    registry = paths.sites_file.read_bytes()
    tokens = _tokens(plan.pki / "tokens")
    if folder := plan.folder("edge"):
        _copy(paths.aggregator.pair, folder / "server.pem", PRIVATE)
        _copy(paths.ca, folder / "ca.crt")
        _copy(paths.crl, folder / "crl.pem")
        _write(folder / "registry.json", registry)
    if folder := plan.folder("aggregator"):
        _aggregator(folder, paths, registry, tokens)
    if folder := plan.folder("control-plane"):
        _control_plane(folder, paths, registry, tokens)
    if folder := plan.folder("monitoring"):
        _monitoring(folder, plan, paths, tokens)
    if folder := plan.folder("cli"):
        _copy(paths.ca, folder / "ca.crt")
        _copy(paths.coordinator.pair, folder / "client.pem", PRIVATE)
        _write(folder / "coordinator.token", tokens[Role.COORDINATOR], PRIVATE)
        _write_toml(folder / "demo-study.toml", demo_study())
    for site in plan.sites:
        _site(plan, site, paths)
    if plan.demo:
        _demo(plan)


def demo_study() -> dict[str, Any]:
    """The first study, on the embedded model; the sites know it as /model."""
    return {
        "name": "demo",
        "model": {"base": "/model", "quantization": "nf4"},
        "adapter": {
            "rank": DEMO.rank,
            "alpha": DEMO.alpha,
            "target_modules": DEMO.target_modules,
        },
        "training": {
            "steps": DEMO.steps,
            "batch_size": DEMO.batch_size,
            "learning_rate": DEMO.learning_rate,
            "max_length": 256,
        },
        "rounds": {
            "count": DEMO.rounds,
            "minimum_sites": 1,
            "deadline_seconds": 300,
            "join_seconds": 300,
        },
    }


def _tokens(folder: Path) -> dict[Role, bytes]:
    """One random token a role, made once."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = {}
    for role in Role:
        found[role] = _secret(folder / f"{role}.token").read_bytes()
    return found


def _secret(file: Path) -> Path:
    """A file with something that nobody can guess, made once."""
    if not file.exists():
        write_atomic(file, f"{secrets.token_urlsafe(32)}\n".encode(), mode=PRIVATE)
    return file


def _aggregator(
    folder: Path, paths: FederationPaths, registry: bytes, tokens: dict[Role, bytes]
) -> None:
    _copy(paths.aggregator.key, folder / "server.key", PRIVATE)
    _copy(paths.aggregator.cert, folder / "server.crt")
    _copy(paths.ca, folder / "ca.crt")
    _copy(paths.study_signing_key, folder / "study-signing.key", PRIVATE)
    _write(folder / "registry.json", registry)
    _write(folder / "aggregator.token", tokens[Role.AGGREGATOR], PRIVATE)
    _write_toml(
        folder / "aggregator.toml",
        {
            "state": "/state",
            "registry": "registry.json",
            "signing_key": "study-signing.key",
            "fleet": {"host": "0.0.0.0", "port": 9092},
            "private": {"host": "127.0.0.1", "port": 9093},
            "tls": {"certificate": "server.crt", "key": "server.key", "ca": "ca.crt"},
            "control_plane": {
                "url": "https://control-plane:9443",
                "ca": "ca.crt",
                "token": "aggregator.token",
            },
        },
    )


def _control_plane(
    folder: Path, paths: FederationPaths, registry: bytes, tokens: dict[Role, bytes]
) -> None:
    _copy(paths.control_plane.key, folder / "server.key", PRIVATE)
    _copy(paths.control_plane.cert, folder / "server.crt")
    _copy(paths.ca, folder / "ca.crt")
    _copy(paths.crl, folder / "crl.pem")
    _write(folder / "registry.json", registry)
    (folder / "tokens").mkdir(exist_ok=True, mode=0o700)
    for role, token in tokens.items():
        _write(folder / "tokens" / f"{role}.token", token, PRIVATE)
    (folder / "certificates").mkdir(exist_ok=True)
    # Hospitals' are in the registry.
    watched = {
        "ca": paths.ca,
        "aggregator": paths.aggregator.cert,
        "coordinator": paths.coordinator.cert,
        "operator": paths.operator.cert,
    }
    for name, file in watched.items():
        _copy(file, folder / "certificates" / f"{name}.crt")
    _write_toml(
        folder / "control-plane.toml",
        {
            "state": "/state",
            "registry": "registry.json",
            "revocation_list": "crl.pem",
            "listen": {
                "host": "0.0.0.0",
                "port": 9443,
                "certificate": "server.crt",
                "key": "server.key",
            },
            "access": {"tokens": "tokens"},
            "certificates": {name: f"certificates/{name}.crt" for name in watched},
        },
    )


def _monitoring(
    folder: Path, plan: Plan, paths: FederationPaths, tokens: dict[Role, bytes]
) -> None:
    """Prometheus and Alertmanager serve TLS to the operator's certificate alone."""
    _copy(paths.ca, folder / "ca.crt")
    _copy(paths.operator.cert, folder / "operator.crt")
    _copy(paths.operator.key, folder / "operator.key", SHARED)
    _write(folder / "operator.token", tokens[Role.OPERATOR], SHARED)
    _write(folder / "client.yml", CLIENT_YML)
    ca = CA.load(paths.ca_folder)
    kept = plan.pki / "monitoring"
    kept.mkdir(exist_ok=True, mode=0o700)
    _copy(_secret(kept / "grafana.password"), folder / "grafana.password", SHARED)
    for name in MONITORS:
        if not _lasts(kept / f"{name}.crt", ca):
            ca.issue_server([name, "localhost"]).write(kept, name)
        _copy(kept / f"{name}.crt", folder / f"{name}.crt")
        _copy(kept / f"{name}.key", folder / f"{name}.key", SHARED)


def _site(plan: Plan, site: str, paths: FederationPaths) -> None:
    files = paths.sites[site]
    settings = {
        "name": site,
        "state": "/state",
        "aggregator": {
            "address": "edge:8443",
            "ca_certificate": "ca.crt",
            "signing_key": "study-signing.pub",
            "client_certificate": "client.pem",
        },
        "link": {"node_key": "node.key", "report_seconds": REPORT_SECONDS},
        "data": {"train": ["/data/train.jsonl"], "heldout": ["/data/heldout.jsonl"]},
        "model": {"path": "/model"},
        "trainer": {
            "socket": SOCKET,
            "signing_key": "signing.key",
            # The hospitals of this topology share one machine: threads that wait for each other's
            # cores make a step several times as long.
            "threads": max(1, (os.cpu_count() or 1) // len(plan.sites)),
        },
    }
    if link := plan.folder(f"{site}-link"):
        _copy(files.node_key, link / "node.key", PRIVATE)
        _copy(files.client.pair, link / "client.pem", PRIVATE)
    if trainer := plan.folder(f"{site}-trainer"):
        _copy(files.signing_key, trainer / "signing.key", PRIVATE)
    for folder in (link, trainer):
        if folder is not None:
            _copy(files.ca, folder / "ca.crt")
            _copy(files.study_public, folder / "study-signing.pub")
            _write_toml(folder / "site.toml", settings)


def _demo(plan: Plan) -> None:
    """Invented rows and the embedded model, for hospitals that have none of their own yet."""
    data = plan.pki / "demo-data"
    if not (data / "heldout.jsonl").exists():
        write_hospital_data(data, plan.sites)
    for site in plan.sites:
        if folder := plan.folder(f"{site}-data"):
            _copy(data / site / "train.jsonl", folder / "train.jsonl")
            _copy(data / "heldout.jsonl", folder / "heldout.jsonl")
    if folder := plan.folder("model"):
        for file in (Path(fedward.embedded.__file__).parent / "weights").iterdir():
            if not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)


def follow(plan: Plan, paths: FederationPaths, every: float, stop: threading.Event) -> None:
    """Renew every so often; in between, hand out what somebody else has changed in /pki."""
    known, renewed = _stamps(paths), time.monotonic()
    while not stop.wait(FOLLOW_SECONDS):
        if time.monotonic() - renewed >= every:
            make(plan)
            known, renewed = _stamps(paths), time.monotonic()
        elif (now := _stamps(paths)) != known:
            hand_out(plan, paths)
            known = now
            log.info("handed out what has changed")


def _stamps(paths: FederationPaths) -> list[tuple[int, int]]:
    """Inode and time of every file that is handed out: they are replaced, never written over."""
    files = [paths.sites_file, paths.ca, paths.crl, paths.aggregator.pair, paths.control_plane.pair]
    files += [site.client.pair for site in paths.sites.values()]
    return [(file.stat().st_ino, file.stat().st_mtime_ns) for file in files]


def _lasts(certificate: Path, ca: CA) -> bool:
    """Whether a certificate is of this CA and has a third of its life left."""
    try:
        leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError):
        return False
    begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    return leaf.issuer == ca.issuing.subject and end - dt.datetime.now(dt.UTC) >= (end - begin) / 3


def _copy(source: Path, target: Path, mode: int = 0o644) -> None:
    _write(target, source.read_bytes(), mode)


def _write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write only what has changed: readers watch these files."""
    if not path.exists() or path.read_bytes() != data:
        write_atomic(path, data, mode=mode)


def _write_toml(path: Path, tree: dict[str, Any]) -> None:
    """Settings are written once: from then on they are the operator's to change."""
    if not path.exists():
        write_atomic(path, tomli_w.dumps(tree).encode())


def plan_from_environment(environment: dict[str, str]) -> Plan:
    """FEDWARD_SITES and FEDWARD_NAMES, separated by spaces; FEDWARD_DEMO=1 for invented data.

    Raises:
        SettingsError: FEDWARD_SITES names nobody and there is a hospital's folder.
    """
    out = Path(environment.get("FEDWARD_OUT", "/out"))
    if not out.is_dir():
        raise SettingsError(f"{out}: no such folder; mount the containers' volumes below it")
    return Plan(
        sites=tuple(environment.get("FEDWARD_SITES", "").split()),
        names=tuple(environment.get("FEDWARD_NAMES", "").split()),
        pki=Path(environment.get("FEDWARD_PKI", "/pki")),
        out=out,
        demo=environment.get("FEDWARD_DEMO", "0") == "1",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Make once, or again and again."""
    parser = argparse.ArgumentParser(prog="python -m fedward_compose.init")
    parser.add_argument("--every", type=float, default=0.0, help="seconds between renewals")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.umask(0o027)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        plan = plan_from_environment(dict(os.environ))
        paths = make(plan)
        fingerprint = CA.load(plan.pki / "certs" / "ca").fingerprint
        log.info("certificate authority %s", fingerprint)
        log.info("tokens: volume cli, coordinator.token (starts studies), and pki, tokens/")
        if options.every:
            follow(plan, paths, options.every, stop)
    except (FedwardError, CertError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
