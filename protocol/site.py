"""`site.toml`: what a hospital decides about itself.

Paths in the file are relative to the folder the file is in. A study cannot read or change any of
this; where both speak of the same thing, the narrower wins.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .errors import SettingsError
from .settings import Section, load_toml
from .study import Name, Quantization, Sha256


class AggregatorSettings(Section):
    """The one place the link connects to."""

    address: str = Field(
        pattern=r"^[^\s:/]+:\d{1,5}$", description="host:port of the aggregator's Fleet listener"
    )
    ca_certificate: Path = Field(description="the CA that signed the aggregator's certificate")
    signing_key: Path = Field(
        description="the coordinator's public Ed25519 key (PEM); requests not signed by it are "
        "refused"
    )
    client_certificate: Path | None = Field(
        default=None,
        description="this site's certificate (PEM, with its chain), for an aggregator behind an "
        "edge; without one the link connects directly",
    )
    client_key: Path | None = Field(
        default=None, description="its private key (PEM); none means the same file"
    )
    proxy: str | None = Field(
        default=None,
        pattern=r"^http://([^\s/@]+@)?[^\s/:@]+(:\d{1,5})?/?$",
        description="this site's HTTPS proxy, http://[user:password@]host:port; needs "
        "client_certificate",
    )

    @model_validator(mode="after")
    def _forwarded(self) -> Self:
        if self.client_certificate is None and (self.client_key or self.proxy):
            given = "client_key" if self.client_key else "proxy"
            raise ValueError(
                f"{given} is given without client_certificate; both belong to the forwarder, which "
                "presents that certificate to the aggregator's edge"
            )
        return self


class LinkSettings(Section):
    """The half with network and no data."""

    node_key: Path = Field(description="this site's SuperNode key (OpenSSH format, NIST P-384)")
    report_seconds: float = Field(
        default=2.0, gt=0, le=3600, description="how often health and progress are reported"
    )


class ColumnSettings(Section):
    """Which column of the hospital's own file holds what."""

    instruction: str = Field(default="instruction", description="the question or task")
    input: str = Field(default="input", description="context, may be absent from the file")
    output: str = Field(default="output", description="the answer to be learnt")
    choices: str = Field(default="choices", description="option texts, for multiple choice")
    answer: str = Field(default="answer", description="index of the right option, from 0")
    chosen: str = Field(
        default="chosen", description="the preferred answer, for dpo; for sft it is the output"
    )
    rejected: str = Field(default="rejected", description="the answer that chosen is preferred to")


class DataSettings(Section):
    """The hospital's rows. They are read by the trainer and by nothing else."""

    train: tuple[Path, ...] = Field(min_length=1, description="JSONL, CSV or Parquet files")
    heldout: tuple[Path, ...] = Field(
        default=(), description="files to evaluate on; none means heldout_fraction of train"
    )
    heldout_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="share of train kept for evaluation if heldout is none"
    )
    columns: ColumnSettings = ColumnSettings()


class SiteModelSettings(Section):
    """Where this hospital keeps base models."""

    path: Path | None = Field(
        default=None, description="use this directory for the study's base, whatever it is called"
    )
    sha256: Sha256 | None = Field(
        default=None, description="refuse a base whose safetensors hash is another"
    )
    allow_hub: bool = Field(
        default=False, description="may a study's hub id be downloaded (needs network here)"
    )
    cache: Path = Field(default=Path("cache"), description="tokenized data and quantized bases")


class RemoteSettings(Section):
    """Link and trainer on two machines (or in two pods): mutual TLS beside the Unix socket.

    Each side accepts one certificate of the other, not a CA, so nothing else on the network
    between them can speak to either. Each half reads its own key only.
    """

    address: str = Field(
        pattern=r"^[^\s:/]+:\d{1,5}$",
        description="host:port of the trainer for the link; the trainer listens on that port",
    )
    trainer_certificate: Path = Field(description="the trainer's certificate (PEM)")
    trainer_key: Path = Field(description="its private key (PEM), read by the trainer")
    link_certificate: Path = Field(description="the link's certificate (PEM)")
    link_key: Path = Field(description="its private key (PEM), read by the link")

    @property
    def host(self) -> str:
        """The trainer's host."""
        return self.address.rpartition(":")[0]

    @property
    def port(self) -> int:
        """The trainer's port."""
        return int(self.address.rpartition(":")[2])


class TrainerSettings(Section):
    """The half with data and no network."""

    socket: Path = Field(
        default=Path("trainer.sock"), description="Unix socket (mode 0600) the link speaks to"
    )
    signing_key: Path = Field(description="this site's Ed25519 key (PEM), signs what leaves")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto takes a CUDA GPU if there is one"
    )
    devices: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = Field(
        default="auto",
        description="processes that train one batch together, a GPU each; auto: every GPU there "
        "is, one process on a CPU",
    )
    threads: int = Field(
        default=0, ge=0, le=1024, description="CPU threads for torch; 0 leaves torch's default"
    )
    ledger: Path = Field(
        default=Path("ledger.jsonl"), description="the record of everything that left this site"
    )
    remote: RemoteSettings | None = Field(
        default=None, description="how the link reaches a trainer on another machine; none is here"
    )


class LimitSettings(Section):
    """How far a study may go here. A study asks, the narrower of the two is done."""

    studies: tuple[str, ...] = Field(
        default=(), description="names of the studies this site takes part in; empty means all"
    )
    max_steps: int = Field(default=10_000, ge=1, description="optimizer steps in one round")
    max_batch_size: int = Field(default=1024, ge=1, description="examples in one step")
    max_length: int = Field(default=8192, ge=8, description="tokens in one example")
    max_rank: int = Field(
        default=256,
        ge=1,
        description="the LoRA rank trained here where a study asks for more; refused where all "
        "sites need the same",
    )
    max_update_norm: float = Field(
        default=1e4, gt=0, description="an update with a larger L2 norm does not leave"
    )
    quantization: tuple[Quantization, ...] = Field(
        default=tuple(Quantization), description="the quantizations this site's hardware allows"
    )


class SiteSettings(Section):
    """The whole of `site.toml`, with every path made absolute."""

    name: Name = Field(description="this hospital's name, as enrolled")
    state: Path = Field(default=Path("state"), description="folder for everything that is written")
    aggregator: AggregatorSettings
    link: LinkSettings
    data: DataSettings
    model: SiteModelSettings = SiteModelSettings()
    trainer: TrainerSettings
    limits: LimitSettings = LimitSettings()

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        overlap = set(self.data.train) & set(self.data.heldout)
        if overlap:
            raise ValueError(
                f"data.heldout names {', '.join(map(str, sorted(overlap)))}, which is also in "
                "data.train: rows that were trained on say nothing about held-out accuracy"
            )
        return self


def load_site(path: Path) -> SiteSettings:
    """Read a `site.toml`; relative paths become absolute from the file's folder.

    Raises:
        SettingsError: see `settings.load_toml`; also a Unix socket path over 107 bytes.
    """
    site = load_toml(path, SiteSettings)
    home = path.resolve().parent

    def absolute(inner: Path) -> Path:
        return home / inner.expanduser()

    def optional(inner: Path | None) -> Path | None:
        return absolute(inner) if inner is not None else None

    state = absolute(site.state)
    remote = site.trainer.remote
    keys = {name: absolute(value) for name, value in remote or () if isinstance(value, Path)}
    socket = state / site.trainer.socket
    if len(str(socket)) > 107:  # sockaddr_un.sun_path, less its terminating zero (unix(7))
        raise SettingsError(
            f"{path}: trainer.socket = {str(socket)!r} has {len(str(socket))} characters; a Unix "
            "socket's path may have 107, so choose a shorter state folder"
        )
    return site.model_copy(
        update={
            "state": state,
            "aggregator": site.aggregator.model_copy(
                update={
                    "ca_certificate": absolute(site.aggregator.ca_certificate),
                    "signing_key": absolute(site.aggregator.signing_key),
                    "client_certificate": optional(site.aggregator.client_certificate),
                    "client_key": optional(site.aggregator.client_key),
                }
            ),
            "link": site.link.model_copy(update={"node_key": absolute(site.link.node_key)}),
            "data": site.data.model_copy(
                update={
                    "train": tuple(absolute(file) for file in site.data.train),
                    "heldout": tuple(absolute(file) for file in site.data.heldout),
                }
            ),
            "model": site.model.model_copy(
                update={
                    "path": optional(site.model.path),
                    "cache": state / site.model.cache,
                }
            ),
            "trainer": site.trainer.model_copy(
                update={
                    "socket": socket,
                    "signing_key": absolute(site.trainer.signing_key),
                    "ledger": state / site.trainer.ledger,
                    "remote": remote and remote.model_copy(update=keys),
                }
            ),
        }
    )
