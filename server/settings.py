"""`aggregator.toml`: where the aggregator listens, what it keeps, and whom it tells.

Paths in the file are relative to the folder the file is in. The whole state is one folder, so that
one volume or one backup holds it.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from protocol.settings import Section, load_toml

SETTINGS_VARIABLE = "FEDWARD_AGGREGATOR"  # tells a ServerApp where aggregator.toml is


class ListenerSettings(Section):
    """One listening socket."""

    host: str = Field(min_length=1, description="address to bind, such as 0.0.0.0 or 127.0.0.1")
    port: int = Field(ge=1, le=65535, description="TCP port")


class TlsSettings(Section):
    """One certificate for both listeners; the files are read again when they change."""

    certificate: Path = Field(description="the aggregator's certificate (PEM, with its chain)")
    key: Path = Field(description="its private key (PEM)")
    ca: Path = Field(description="the CA that signed it; the aggregator's own processes check it")


class ControlPlaneSettings(Section):
    """The control plane, which the aggregator tells everything and asks for commands."""

    url: str = Field(
        pattern=r"^https://[^\s/]+$", description="https://host:port of the control plane"
    )
    ca: Path = Field(description="the CA that signed the control plane's certificate")
    token: Path = Field(description="file with the bearer token of the role aggregator")


class SupervisionSettings(Section):
    """How a study that lost its ServerApp is taken up again."""

    attempts: int = Field(
        default=10, ge=1, description="starts in a row without a finished round before giving up"
    )
    start_seconds: float = Field(
        default=120.0, gt=0, description="how long a submitted study may take to start"
    )


class AggregatorSettings(Section):
    """The whole of `aggregator.toml`, with every path made absolute."""

    state: Path = Field(default=Path("state"), description="folder for everything that is written")
    registry: Path = Field(description="the list of enrolled hospitals (JSON)")
    signing_key: Path = Field(description="Ed25519 key (PEM) that signs requests to hospitals")
    fleet: ListenerSettings = Field(description="the listener that hospitals reach")
    private: ListenerSettings = Field(
        description="the listener for the aggregator's own processes; keep it on loopback"
    )
    tls: TlsSettings
    control_plane: ControlPlaneSettings
    supervision: SupervisionSettings = SupervisionSettings()

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if self.fleet.port == self.private.port:
            raise ValueError(
                f"fleet.port and private.port are both {self.fleet.port}; the private listener "
                "serves what hospitals must not reach and needs a port of its own"
            )
        return self

    @property
    def studies(self) -> Path:
        """One folder for each study."""
        return self.state / "studies"

    @property
    def database(self) -> Path:
        """Flower's state."""
        return self.state / "superlink.db"

    @property
    def superexec_secret(self) -> Path:
        """Shared by the SuperLink and its SuperExec; made at the first start, mode 0600."""
        return self.state / "superexec.secret"

    @property
    def control_token(self) -> Path:
        """Bearer token of the Control API; made at the first start, mode 0600."""
        return self.state / "control.token"

    @property
    def epoch(self) -> Path:
        """Written whenever the SuperLink starts."""
        return self.state / "superlink.epoch"

    @property
    def private_address(self) -> str:
        """host:port under which the aggregator's own processes reach the private listener."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.private.host, self.private.host)
        return f"{host}:{self.private.port}"

    def study(self, study_id: str) -> Path:
        """One study's folder."""
        return self.studies / study_id


def load_aggregator(path: Path) -> AggregatorSettings:
    """Read an `aggregator.toml`; relative paths become absolute from the file's folder.

    Raises:
        SettingsError: see `protocol.settings.load_toml`.
    """
    settings = load_toml(path, AggregatorSettings)
    home = path.resolve().parent

    def absolute(inner: Path) -> Path:
        return home / inner.expanduser()

    tls, plane = settings.tls, settings.control_plane
    return settings.model_copy(
        update={
            "state": absolute(settings.state),
            "registry": absolute(settings.registry),
            "signing_key": absolute(settings.signing_key),
            "tls": tls.model_copy(
                update={
                    "certificate": absolute(tls.certificate),
                    "key": absolute(tls.key),
                    "ca": absolute(tls.ca),
                }
            ),
            "control_plane": plane.model_copy(
                update={"ca": absolute(plane.ca), "token": absolute(plane.token)}
            ),
        }
    )
