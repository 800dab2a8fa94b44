"""A federation on one machine: its settings file and the folder it lives in.

    FOLDER/
      federation.toml        the hospitals, as given to `fedward up`
      federation.json        ports, so that a restarted federation keeps its addresses
      certs/                 the CA and every part's keys (certs.local)
      aggregator/            aggregator.toml, state/
      control-plane/         control-plane.toml, state/, tokens/
      sites/<site>/          site.toml, state/
      logs/                  one file a process
      launcher.pid           while it runs

Each part gets the same settings file that it would have in a hospital or a container.
"""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import Field

import certs.local
from dashboard.tokens import Tokens
from protocol.files import write_atomic
from protocol.settings import Section, load_toml
from protocol.site import DataSettings, LimitSettings, SiteModelSettings
from protocol.study import Name

PORTS = ("fleet", "private", "control_plane")


class LocalSite(Section):
    """One hospital of a local federation."""

    data: DataSettings
    model: SiteModelSettings = SiteModelSettings()
    limits: LimitSettings = LimitSettings()
    device: str = Field(default="auto", pattern="^(auto|cpu|cuda)$", description="auto, cpu, cuda")
    threads: int = Field(
        default=0, ge=0, le=1024, description="CPU threads of its trainer; 0 shares the cores out"
    )


class FederationSettings(Section):
    """`federation.toml`: which hospitals run here, and where their data lies."""

    sites: dict[Name, LocalSite] = Field(min_length=1, description="the hospitals, by name")
    report_seconds: float = Field(
        default=1.0, gt=0, le=3600, description="how often a hospital reports progress"
    )


def load_federation(path: Path) -> FederationSettings:
    """Read a `federation.toml`; relative paths are from the folder the file is in.

    Raises:
        SettingsError: see `protocol.settings.load_toml`.
    """
    settings = load_toml(path, FederationSettings)
    home = path.resolve().parent
    sites = {name: _absolute(site, home) for name, site in settings.sites.items()}
    return settings.model_copy(update={"sites": sites})


def _absolute(site: LocalSite, home: Path) -> LocalSite:
    data = site.data.model_copy(
        update={
            "train": tuple(home / file.expanduser() for file in site.data.train),
            "heldout": tuple(home / file.expanduser() for file in site.data.heldout),
        }
    )
    path = site.model.path
    model = site.model.model_copy(update={"path": home / path.expanduser() if path else None})
    return site.model_copy(update={"data": data, "model": model})


@dataclass(frozen=True)
class Layout:
    """Where everything of a local federation lies."""

    folder: Path

    @property
    def certs(self) -> Path:
        return self.folder / "certs"

    @property
    def aggregator(self) -> Path:
        return self.folder / "aggregator"

    @property
    def control_plane(self) -> Path:
        return self.folder / "control-plane"

    @property
    def tokens(self) -> Path:
        return self.control_plane / "tokens"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def pid_file(self) -> Path:
        return self.folder / "launcher.pid"

    @property
    def state_file(self) -> Path:
        return self.folder / "federation.json"

    @property
    def settings_file(self) -> Path:
        return self.folder / "federation.toml"

    def site(self, name: str) -> Path:
        """One hospital's folder."""
        return self.folder / "sites" / name

    def trust(self) -> Path:
        """The CA that signed the control plane's certificate."""
        return self.certs / "control-plane" / "ca.crt"


@dataclass(frozen=True)
class Federation:
    """A local federation whose settings files are written."""

    layout: Layout
    sites: tuple[str, ...]
    ports: Mapping[str, int]

    @property
    def dashboard(self) -> str:
        """The control plane's address."""
        return f"https://localhost:{self.ports['control_plane']}"


def prepare(folder: Path, settings: FederationSettings) -> Federation:
    """Make keys, pick ports and write every part's settings file; safe to repeat.

    Raises:
        certs.CertError: a key or certificate in the folder is damaged.
        OSError: the folder cannot be written.
    """
    layout = Layout(folder.resolve())
    for part in (layout.aggregator, layout.control_plane, layout.logs):
        part.mkdir(parents=True, exist_ok=True)
    layout.folder.chmod(0o700)
    Tokens(layout.tokens)  # made here, so that no part has to wait for the control plane's start
    names = tuple(settings.sites)
    paths = certs.local.make_federation(layout.certs, names)
    ports = _ports(layout)
    _write_aggregator(layout, paths, ports)
    _write_control_plane(layout, paths, ports)
    share = max(1, (os.cpu_count() or 1) // len(names))
    for name in names:
        _write_site(layout, paths.sites[name], settings, settings.sites[name], ports, share)
    federation = Federation(layout, names, ports)
    state = {"sites": list(names), "ports": ports}
    _write_toml(layout.settings_file, settings.model_dump(mode="json", exclude_none=True))
    write_atomic(layout.state_file, json.dumps(state, indent=1).encode())
    return federation


def existing(folder: Path) -> Federation | None:
    """The federation that was prepared in `folder`, if any."""
    layout = Layout(folder.resolve())
    try:
        state = json.loads(layout.state_file.read_text())
        return Federation(layout, tuple(state["sites"]), dict(state["ports"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _ports(layout: Layout) -> dict[str, int]:
    """The ports of the last time where they are still free, so that addresses last."""
    before = existing(layout.folder)
    ports: dict[str, int] = {}
    for name in PORTS:
        wanted = before.ports.get(name, 0) if before else 0
        ports[name] = _free_port(wanted, taken=set(ports.values()))
    return ports


def _free_port(wanted: int, taken: set[int]) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            if found not in taken:
                return found
    return _free_port(0, taken)


def _write_aggregator(
    layout: Layout, paths: certs.local.FederationPaths, ports: Mapping[str, int]
) -> None:
    _write_toml(
        layout.aggregator / "aggregator.toml",
        {
            "registry": str(paths.sites_file),
            "signing_key": str(paths.study_signing_key),
            "fleet": {"host": "127.0.0.1", "port": ports["fleet"]},
            "private": {"host": "127.0.0.1", "port": ports["private"]},
            "tls": {
                "certificate": str(paths.aggregator.cert),
                "key": str(paths.aggregator.key),
                "ca": str(paths.aggregator.ca),
            },
            "control_plane": {
                "url": f"https://localhost:{ports['control_plane']}",
                "ca": str(paths.aggregator.ca),
                "token": str(layout.tokens / "aggregator.token"),
            },
        },
    )


def _write_control_plane(
    layout: Layout, paths: certs.local.FederationPaths, ports: Mapping[str, int]
) -> None:
    _write_toml(
        layout.control_plane / "control-plane.toml",
        {
            "registry": str(paths.sites_file),
            "listen": {
                "host": "127.0.0.1",
                "port": ports["control_plane"],
                "certificate": str(paths.control_plane.cert),
                "key": str(paths.control_plane.key),
            },
            "access": {"tokens": str(layout.tokens)},
            "certificates": {
                "ca": str(paths.ca),
                "aggregator": str(paths.aggregator.cert),
                "coordinator": str(paths.coordinator.cert),
                "operator": str(paths.operator.cert),
            },
        },
    )


def _write_site(
    layout: Layout,
    paths: certs.local.SitePaths,
    settings: FederationSettings,
    site: LocalSite,
    ports: Mapping[str, int],
    threads: int,
) -> None:
    folder = layout.site(paths.site)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    model = site.model.model_dump(mode="json", exclude_none=True)
    _write_toml(
        folder / "site.toml",
        {
            "name": paths.site,
            "aggregator": {
                "address": f"127.0.0.1:{ports['fleet']}",
                "ca_certificate": str(paths.ca),
                "signing_key": str(paths.study_public),
            },
            "link": {
                "node_key": str(paths.node_key),
                "report_seconds": settings.report_seconds,
            },
            "data": site.data.model_dump(mode="json"),
            "model": model,
            "trainer": {
                "signing_key": str(paths.signing_key),
                "device": site.device,
                "threads": site.threads or threads,
            },
            "limits": site.limits.model_dump(mode="json"),
        },
    )


def _write_toml(path: Path, tree: dict[str, Any]) -> None:
    write_atomic(path, tomli_w.dumps(tree).encode(), mode=0o600)
