"""`control-plane.toml`: where the control plane listens and what it reads.

Paths in the file are relative to the folder the file is in.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from protocol.errors import SettingsError
from protocol.settings import Section, load_toml


class ListenSettings(Section):
    """The one HTTPS listener."""

    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(default=9443, ge=1, le=65535, description="TCP port to listen on")
    certificate: Path = Field(description="the control plane's certificate chain (PEM)")
    key: Path = Field(description="the certificate's private key (PEM)")


class DatabaseSettings(Section):
    """Where studies, rounds and events are kept."""

    url: str = Field(
        default="",
        description="an SQLAlchemy URL (postgresql+psycopg://...); empty means an SQLite file "
        "control-plane.sqlite in the state folder",
    )
    password: Path | None = Field(
        default=None,
        description="file with the database user's password; read for every new connection, so "
        "that it can be changed without a restart",
    )


class AccessSettings(Section):
    """Who may speak to the control plane."""

    tokens: Path = Field(
        default=Path("tokens"),
        description="folder with one <role>.token file for each role; made at first start",
    )
    session_hours: float = Field(
        default=12.0, gt=0, le=720, description="how long a browser stays logged in"
    )
    failures_per_minute: int = Field(
        default=10, ge=1, le=10_000, description="wrong tokens one address may try in a minute"
    )
    open_metrics: bool = Field(
        default=False,
        description="serve /metrics without a token; false asks for the operator's, also on "
        "loopback, because the figures name hospitals",
    )


class LimitSettings(Section):
    """Bounds that keep the control plane small."""

    metric_studies: int = Field(
        default=5,
        ge=1,
        le=100,
        description="ended studies that stay in /metrics, newest first (running ones always do)",
    )
    streams: int = Field(
        default=200, ge=1, le=10_000, description="live event streams open at the same time"
    )
    clock_ahead_seconds: float = Field(
        default=300.0,
        gt=0,
        description="a site's report further in the future is refused: its clock is wrong, and "
        "accepting it would shut out the site's own reports once the clock is set right",
    )


class ControlPlaneSettings(Section):
    """The whole of `control-plane.toml`, with every path made absolute."""

    state: Path = Field(default=Path("state"), description="folder for everything that is written")
    registry: Path = Field(description="the list of enrolled hospitals (sites.json)")
    listen: ListenSettings
    database: DatabaseSettings = DatabaseSettings()
    access: AccessSettings = AccessSettings()
    limits: LimitSettings = LimitSettings()
    certificates: dict[Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")], Path] = Field(
        default={},
        max_length=50,
        description="certificates (name = file) whose last day /metrics tells, beside our own",
    )
    revocation_list: Path | None = Field(
        default=None,
        description="the revocation list (PEM) that the edge reads; /metrics tells when it ends, "
        "and then the edge lets no hospital in",
    )

    @property
    def database_url(self) -> str:
        """The URL in use."""
        return self.database.url or f"sqlite:///{self.state / 'control-plane.sqlite'}"


def load_control_plane(path: Path) -> ControlPlaneSettings:
    """Read a `control-plane.toml`.

    Raises:
        SettingsError: see `settings.load_toml`; also a certificate or key that cannot be read.
    """
    settings = load_toml(path, ControlPlaneSettings)
    home = path.resolve().parent

    def absolute(inner: Path) -> Path:
        return home / inner.expanduser()

    state = absolute(settings.state)
    settings = settings.model_copy(
        update={
            "state": state,
            "registry": absolute(settings.registry),
            "listen": settings.listen.model_copy(
                update={
                    "certificate": absolute(settings.listen.certificate),
                    "key": absolute(settings.listen.key),
                }
            ),
            "database": settings.database.model_copy(
                update={
                    "password": settings.database.password and absolute(settings.database.password)
                }
            ),
            "access": settings.access.model_copy(
                update={"tokens": absolute(settings.access.tokens)}
            ),
            "revocation_list": settings.revocation_list and absolute(settings.revocation_list),
            "certificates": {name: absolute(file) for name, file in settings.certificates.items()},
        }
    )
    for key, file in (
        ("listen.certificate", settings.listen.certificate),
        ("listen.key", settings.listen.key),
    ):
        try:
            file.read_bytes()
        except OSError as error:
            raise SettingsError(
                f"{path}: {key} = {str(file)!r}: cannot be read: {error.strerror or error}"
            ) from error
    return settings
