"""`study.toml`: what the coordinator asks of every hospital.

A hospital may narrow what a study asks (see `site`), never widen it.
"""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from .errors import SettingsError
from .settings import Section, load_toml

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
"""A site or study name: lower-case letters, digits and dashes, at most 63 (an RFC 1123 label)."""

StudyId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,79}$")]
"""A study's name with the suffix that tells one submission of it from the next."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Quantization(StrEnum):
    """How the frozen base model is held in memory."""

    NONE = "none"
    INT8 = "int8"  # LLM.int8(), bitsandbytes
    NF4 = "nf4"  # QLoRA's 4-bit normal float (arXiv 2305.14314, section 3)
    FP4 = "fp4"


class ModelSettings(Section):
    """The base model; its weights never travel."""

    base: str = Field(
        min_length=1,
        description="a directory in Hugging Face layout, or a hub id such as mistralai/Mistral-7B",
    )
    sha256: Sha256 | None = Field(
        default=None,
        description="SHA-256 over the base's safetensors files; a site with other weights refuses",
    )
    quantization: Quantization = Field(
        default=Quantization.NF4, description="one of nf4, fp4, int8, none"
    )
    double_quantization: bool = Field(
        default=True, description="quantize the 4-bit scales too (saves 0.4 bit a parameter)"
    )
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto is bfloat16 on a GPU that has it, float32 on a CPU"
    )


class AdapterSettings(Section):
    """The trained part, beside the frozen base (`kind` is a PEFT method).

    | kind | what trains | paper |
    |---|---|---|
    | `lora` | B A of rank r beside a matrix, times alpha / r | arXiv 2106.09685 |
    | `rslora` | the same, times alpha / sqrt(r): large ranks learn as fast | arXiv 2312.03732 |
    | `dora` | the same, and the length of each row of the sum | arXiv 2402.09353 |
    | `ia3` | one factor for each key, value and inner feed-forward channel | arXiv 2205.05638 |
    | `prompt` | the embeddings of `virtual_tokens` before each sequence | arXiv 2104.08691 |
    | `p-tuning` | the same, made by a small encoder, which is what trains | arXiv 2103.10385 |
    | `prefix` | keys and values of `virtual_tokens` in every layer | arXiv 2101.00190 |

    Of `p-tuning`, and of `prefix` with an encoder, the encoder's weights travel and are averaged;
    the finished adapter holds what the encoder makes of them, as PEFT saves it.
    """

    kind: Literal["lora", "rslora", "dora", "ia3", "prompt", "p-tuning", "prefix"] = Field(
        default="lora",
        description="the PEFT method: lora, rslora, dora, ia3, prompt, p-tuning or prefix",
    )
    rank: int = Field(
        default=16, ge=1, le=1024, description="LoRA rank r; other kinds than LoRA's have none"
    )
    alpha: float = Field(default=32.0, gt=0, description="LoRA scale; the update is alpha/r * B A")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout before A")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear",
        description='"all-linear" or a list of module names; ia3 takes its own by default',
    )
    virtual_tokens: int = Field(
        default=20, ge=1, le=4096, description="prompt, p-tuning, prefix: trained positions"
    )
    encoder_hidden_size: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="width of the encoder: of p-tuning (unset: the base's own), and of prefix "
        "(unset: no encoder, keys and values train themselves)",
    )

    @property
    def has_rank(self) -> bool:
        """Whether the kind is made of LoRA's factors."""
        return self.kind in {"lora", "rslora", "dora"}

    @property
    def virtual(self) -> bool:
        """Whether the kind trains positions before each sequence, beside an untouched model."""
        return self.kind in {"prompt", "p-tuning", "prefix"}

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.virtual and (self.dropout or self.target_modules != "all-linear"):
            key = "dropout" if self.dropout else "target_modules"
            raise ValueError(
                f"adapter.{key} = {getattr(self, key)!r} is about the base's matrices, which "
                f"adapter.kind = {self.kind!r} leaves as they are: leave it out"
            )
        if self.encoder_hidden_size is not None and self.kind not in {"p-tuning", "prefix"}:
            raise ValueError(
                f"adapter.encoder_hidden_size = {self.encoder_hidden_size} is for 'p-tuning' and "
                f"'prefix'; adapter.kind = {self.kind!r} has no encoder"
            )
        return self


class PromptSettings(Section):
    """How a row becomes text."""

    template: Literal["alpaca", "chat", "plain", "text"] = Field(
        default="alpaca",
        description="alpaca, chat (the tokenizer's own chat template), plain, or text (the whole "
        "row is learnt, the instruction too)",
    )


class TrainingSettings(Section):
    """One site's local work in one round."""

    objective: Literal["sft", "dpo"] = Field(
        default="sft",
        description="sft learns each row's answer; dpo learns to prefer a row's chosen answer to "
        "its rejected one (arXiv 2305.18290), measured against the base without the adapter",
    )
    dpo_beta: float = Field(
        default=0.1, gt=0, le=100, description="dpo: how strongly it is held to the base"
    )
    steps: int = Field(default=10, ge=1, le=1_000_000, description="optimizer steps a round")
    batch_size: int = Field(default=16, ge=1, le=65_536, description="examples a step")
    learning_rate: float = Field(default=2e-4, gt=0, le=10, description="AdamW's peak rate")
    learning_rate_end: float | None = Field(
        default=None,
        ge=0,
        le=10,
        description="the rate of the last round (cosine, linear), the least of plateau; unset is a "
        "tenth of learning_rate",
    )
    schedule: Literal["constant", "cosine", "linear", "plateau"] = Field(
        default="constant",
        description="the learning rate over the rounds: constant, cosine, linear, or plateau "
        "(reduced when the held-out loss of all sites stops falling)",
    )
    plateau_patience: int = Field(
        default=2, ge=1, le=1000, description="plateau: evaluations without a better loss"
    )
    plateau_factor: float = Field(
        default=0.5, gt=0, lt=1, description="plateau: what the rate is then multiplied by"
    )
    weight_decay: float = Field(default=0.0, ge=0, le=10, description="AdamW's decoupled decay")
    optimizer: Literal["adamw", "adamw-8bit"] = Field(
        default="adamw",
        description="adamw, or adamw-8bit: a quarter of its memory on a GPU (on a CPU the same)",
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradient clipping, global L2 norm")
    max_length: int = Field(default=512, ge=8, le=1_048_576, description="tokens an example")
    max_seconds: float | None = Field(
        default=None,
        gt=0,
        description="a slower site stops there after fewer steps and weighs what it did",
    )

    @property
    def last_rate(self) -> float:
        """The rate that a falling schedule ends at; never 0 unless a study says so."""
        end = self.learning_rate_end
        return self.learning_rate / 10 if end is None else end


class EvaluationSettings(Section):
    """What each site measures on its own held-out rows."""

    max_examples: int = Field(default=512, ge=1, description="held-out rows used at each site")
    every: int = Field(default=1, ge=1, description="evaluate in every n-th round")
    lone_baseline: bool = Field(
        default=False,
        description="after the study, train each site alone for the same steps and compare",
    )


class RoundSettings(Section):
    """How a round is run; neither waiting for sites nor for replies can last for ever."""

    count: int = Field(default=10, ge=1, le=100_000, description="rounds in the study")
    minimum_sites: int = Field(
        default=2, ge=1, le=10_000, description="sites whose update a round needs"
    )
    deadline_seconds: float = Field(
        default=3600.0, gt=0, description="a site that has not answered by then is late"
    )
    join_seconds: float = Field(
        default=600.0, gt=0, description="how long to wait for minimum_sites to be online"
    )
    failed_rounds: int = Field(
        default=3, ge=1, description="rounds in a row without minimum_sites before the study fails"
    )
    balance: Literal["off", "steps"] = Field(
        default="off",
        description="steps: a slow site is asked for fewer steps, so that all finish together",
    )
    balance_floor: float = Field(
        default=0.25, gt=0, le=1, description="the least share of the steps a slow site is asked"
    )


class AggregationSettings(Section):
    """How updates become the next adapter."""

    strategy: Literal[
        "fedavg",
        "fedprox",
        "fedavgm",
        "fedadagrad",
        "fedyogi",
        "fedadam",
        "scaffold",
        "median",
        "trimmed-mean",
        "krum",
        "multi-krum",
    ] = Field(default="fedavg", description="the server algorithm")
    lora: Literal["factors", "flexlora", "ffa", "rolora", "fedex", "flora"] = Field(
        default="factors",
        description="factors averages A and B apart; flexlora truncates their exact product; ffa "
        "trains B only; rolora trains B and A in turn; fedex and flora change the base weights",
    )
    weighting: Literal["examples", "equal", "inverse-loss"] = Field(
        default="examples", description="weight of a site's update: examples, equal, inverse-loss"
    )
    max_examples: int = Field(
        default=100_000, ge=1, description="the most examples a site's weight may claim"
    )
    inverse_loss_floor: float = Field(
        default=0.1, gt=0, le=100, description="inverse-loss takes a smaller training loss as this"
    )
    max_update_norm: float = Field(
        default=1e4, gt=0, description="an update with a larger L2 norm is refused"
    )
    server_learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="the server's step; unset is 0.001 for fedadagrad, fedyogi, fedadam, else 1",
    )
    momentum: float = Field(default=0.5, ge=0, lt=1, description="fedavgm's momentum")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="adaptive methods: first moment")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="adaptive methods: second moment")
    tau: float = Field(default=1e-3, gt=0, le=1, description="adaptive methods: adaptivity")
    proximal_mu: float = Field(
        default=0.01, gt=0, le=1e3, description="fedprox: weight of the proximal term"
    )
    trim_fraction: float = Field(
        default=0.1, ge=0, lt=0.5, description="trimmed-mean: share cut off at each end"
    )
    byzantine_sites: int = Field(
        default=1, ge=0, le=1000, description="krum, multi-krum: hostile sites to withstand (f)"
    )
    krum_keep: int = Field(
        default=0, ge=0, le=10_000, description="multi-krum: updates averaged; 0 is all but f"
    )
    stack_sites: int = Field(
        default=16,
        ge=2,
        le=10_000,
        description="flexlora: sites whose factors are held before they are compressed",
    )
    normalise_steps: bool = Field(
        default=False,
        description="FedNova: count an update by the step, for sites that do fewer steps",
    )
    sample_fraction: float = Field(
        default=1.0, gt=0, le=1, description="share of the online sites whose update a round needs"
    )
    oversample: float = Field(
        default=0.0, ge=0, le=10, description="share asked above that, for those that are late"
    )

    @property
    def step(self) -> float:
        """The server learning rate, with the strategy's own default."""
        adaptive = self.strategy in {"fedadagrad", "fedyogi", "fedadam"}
        return self.server_learning_rate or (1e-3 if adaptive else 1.0)

    @property
    def changes_base(self) -> bool:
        """Whether every round adds something to the base weights (FedEx-LoRA, FLoRA)."""
        return self.lora in {"fedex", "flora"}

    @property
    def proximal(self) -> float:
        """FedProx's mu for the trainer; 0 unless the strategy is fedprox."""
        return self.proximal_mu if self.strategy == "fedprox" else 0.0

    def trained_factors(self, round_number: int) -> frozenset[Literal["A", "B"]]:
        """The LoRA factors that train in round `round_number` (from 1); the others stay frozen.

        FFA-LoRA (arXiv 2403.12313) trains B for ever. RoLoRA (arXiv 2502.01755) takes turns, B in
        odd rounds: B begins at zero, so A's gradient in the first round is zero too.
        """
        if self.lora == "ffa":
            return frozenset({"B"})
        if self.lora == "rolora":
            return frozenset({"B"}) if round_number % 2 else frozenset({"A"})
        return frozenset({"A", "B"})

    @model_validator(mode="after")
    def _compatible(self) -> Self:
        if self.lora in {"flexlora", "fedex", "flora"} and self.strategy not in {
            "fedavg",
            "fedprox",
        }:
            raise ValueError(
                f"aggregation.lora = {self.lora!r} rebuilds the factors every round, so "
                f"aggregation.strategy = {self.strategy!r} has nothing to compare them with: use "
                "'fedavg' or 'fedprox'"
            )
        if self.normalise_steps and (
            self.lora in {"flexlora", "fedex", "flora"}
            or self.strategy in {"median", "trimmed-mean", "krum", "multi-krum"}
        ):
            raise ValueError(
                "aggregation.normalise_steps is about a mean of updates, which "
                f"strategy = {self.strategy!r}, lora = {self.lora!r} do not take: leave it out"
            )
        if self.lora == "rolora" and self.strategy == "scaffold":
            raise ValueError(
                "aggregation.lora = 'rolora' freezes half of the adapter in turn, and scaffold's "
                "control variates of that half would go stale: use another of the two"
            )
        return self


class CodecSettings(Section):
    """How an adapter is written on the wire, in each direction."""

    up: str = Field(default="fp32", description="site to aggregator (the change of the adapter)")
    down: str = Field(
        default="fp32",
        description="aggregator to site; topk, int4, nf4 and int2 write the adapter's change since "
        "the round before, the others the adapter itself",
    )
    error_feedback: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="a site adds what its last encoding lost to its next update; auto: topk only",
    )

    @property
    def feedback(self) -> bool:
        """Whether a site keeps what its encoding lost for the next round."""
        if self.error_feedback == "auto":
            return self.up.startswith("topk")
        return self.error_feedback == "on"

    @property
    def chained(self) -> bool:
        """Whether the adapter goes down as its change since the round before.

        So it is for the codecs of few bits: of the adapter itself they would lose a tenth or more
        of every weight in each round. What one round's change loses, the next one makes up.
        """
        return self.down.startswith(("topk", "int2", "int4", "nf4"))

    @field_validator("up", "down")
    @classmethod
    def _known(cls, name: str) -> str:
        # Imported here because the codecs' payloads are messages, and messages hold settings.
        from .codec import get_codec

        try:
            return get_codec(name).name
        except SettingsError as error:
            raise ValueError(str(error)) from error


class StudySettings(Section):
    """The whole of `study.toml`."""

    name: Name = Field(description="lower-case letters, digits and dashes, at most 63")
    seed: int = Field(default=42, ge=0, lt=2**63, description="decides every random draw")
    sites: tuple[Name, ...] = Field(
        default=(), description="the hospitals asked; empty means every enrolled one"
    )
    model: ModelSettings
    adapter: AdapterSettings = AdapterSettings()
    prompt: PromptSettings = PromptSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    rounds: RoundSettings = RoundSettings()
    aggregation: AggregationSettings = AggregationSettings()
    codec: CodecSettings = CodecSettings()

    @property
    def mixed_ranks(self) -> bool:
        """Whether a hospital may train with a smaller LoRA rank than the others.

        Robust strategies compare the sites' values one by one, and a smaller site has none where
        the others do.
        """
        robust = {"median", "trimmed-mean", "krum", "multi-krum"}
        return self.adapter.kind in {"lora", "rslora"} and self.aggregation.strategy not in robust

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.sites)) != len(self.sites):
            raise ValueError("sites: a hospital is named twice")
        if self.sites and self.rounds.minimum_sites > len(self.sites):
            raise ValueError(
                f"rounds.minimum_sites = {self.rounds.minimum_sites} can never be met: "
                f"the study names {len(self.sites)} site(s)"
            )
        if self.training.objective == "dpo" and self.prompt.template == "text":
            raise ValueError(
                "training.objective = 'dpo' compares two answers to one prompt, and "
                "prompt.template = 'text' has no prompt: use 'alpaca', 'chat' or 'plain'"
            )
        if self.training.objective == "dpo" and self.aggregation.lora in {"fedex", "flora"}:
            raise ValueError(
                "training.objective = 'dpo' measures against the base as it was, which "
                f"aggregation.lora = {self.aggregation.lora!r} changes in every round: use "
                "'factors' or 'flexlora'"
            )
        self._check_aggregation()
        if self.training.last_rate > self.training.learning_rate:
            raise ValueError(
                f"training.learning_rate_end = {self.training.learning_rate_end} must not exceed "
                f"training.learning_rate = {self.training.learning_rate}"
            )
        return self

    def _check_aggregation(self) -> None:
        aggregation, kind = self.aggregation, str(self.adapter.kind)
        if aggregation.lora != "factors" and kind not in {"lora", "rslora"}:
            raise ValueError(
                f"aggregation.lora = {aggregation.lora!r} is about LoRA's two factors; "
                f"adapter.kind = {kind!r} needs 'factors'"
            )
        if aggregation.lora in {"fedex", "flora"} and self.model.quantization != Quantization.NONE:
            raise ValueError(
                f"aggregation.lora = {aggregation.lora!r} adds to the base weights every round, "
                f"which model.quantization = {self.model.quantization.value!r} cannot hold: use "
                "'none', or aggregation.lora = 'flexlora'"
            )
        exact = self.codec.down.removesuffix("+zstd") in {"fp32", "fp16"}
        if kind in {"dora", "ia3"} and not (exact or self.codec.chained):
            raise ValueError(
                f"adapter.kind = {kind!r} multiplies the base's own values, so what "
                f"codec.down = {self.codec.down!r} rounds off would disturb the base in every "
                'round: use "fp32" or "fp16", or "int4", which writes changes'
            )
        if self.codec.chained and aggregation.changes_base:
            raise ValueError(
                f"codec.down = {self.codec.down!r} writes the adapter's change since the round "
                f"before, but aggregation.lora = {aggregation.lora!r} sends changes of the base "
                'beside the whole: use "int8", "bf16", "fp16" or "fp32"'
            )
        if self.codec.feedback and aggregation.lora not in {"factors", "ffa"}:
            raise ValueError(
                f"codec.up = {self.codec.up!r} with error feedback adds what a round lost to the "
                f"next, but aggregation.lora = {aggregation.lora!r} has other factors by then: use "
                'another codec, or codec.error_feedback = "off"'
            )
        if self.codec.feedback and aggregation.strategy == "scaffold":
            raise ValueError(
                "aggregation.strategy = 'scaffold' sends control variates beside the adapter, "
                'which error feedback would mix up with it: set codec.error_feedback = "off"'
            )
        cut = math.ceil(aggregation.trim_fraction * self.rounds.minimum_sites)
        if aggregation.strategy == "trimmed-mean" and self.rounds.minimum_sites <= 2 * cut:
            raise ValueError(
                f"aggregation.trim_fraction = {aggregation.trim_fraction} cuts {cut} update(s) at "
                f"each end; rounds.minimum_sites = {self.rounds.minimum_sites} must be over "
                f"{2 * cut}"
            )
        needed = 2 * aggregation.byzantine_sites + 3
        if "krum" in aggregation.strategy and self.rounds.minimum_sites < needed:
            raise ValueError(
                f"aggregation.strategy = {aggregation.strategy!r} withstands byzantine_sites = "
                f"{aggregation.byzantine_sites} only among {needed} or more: "
                f"rounds.minimum_sites = {self.rounds.minimum_sites} is too few"
            )


def load_study(path: Path) -> StudySettings:
    """Read a `study.toml`; see `settings.load_toml` for the errors."""
    return load_toml(path, StudySettings)
