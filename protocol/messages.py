"""The frozen messages that cross the wire between the aggregator and a hospital's trainer.

A message is a header (these models, as JSON) and a payload (encoded adapter bytes, perhaps none).
The header names the payload's SHA-256 and is signed (`envelope`). A hospital's reply has only the
fields below: whatever else a trainer might say has no place to go.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, model_validator

from .manifest import AdapterManifest
from .states import Reason, TrainerState
from .study import Name, Sha256, StudyId, StudySettings

PROTOCOL_VERSION: Final = 1

RequestId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
CodecName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9+.-]{1,32}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Seconds = Annotated[FiniteFloat, Field(ge=0)]
Fraction = Annotated[FiniteFloat, Field(ge=0, le=1)]


class Frozen(BaseModel):
    """A message: immutable, closed to unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Task(StrEnum):
    """What a trainer can be asked; there is nothing else."""

    PREPARE = "prepare"  # load the base, tokenize the data, describe the adapter
    TRAIN = "train"  # evaluate the adapter that came, train it, answer with the change
    EVALUATE = "evaluate"  # evaluate the adapter that came
    LONE = "lone"  # train from the first adapter without the others; answer with numbers only


class Payload(Frozen):
    """What the bytes beside the header are.

    `digest` is over the encoded bytes; `decoded_digest` is over the little-endian float32 vector
    that both ends must arrive at, so that a lossy codec cannot let the two drift apart unseen.
    """

    codec: CodecName
    kind: Literal["adapter", "delta"]
    numel: Annotated[int, Field(ge=1, lt=2**40)]
    size: Annotated[int, Field(ge=1, lt=2**40)]  # bytes, encoded
    digest: Sha256
    decoded_digest: Sha256


class Merges(Frozen):
    """Changes of the base weights that follow the adapter in a payload (FedEx-LoRA, FLoRA).

    A base is known by what was merged into it so far: its own hash at first, and after each round
    a hash over the one before and that round's change (`merged_base`).
    """

    rank: Annotated[int, Field(ge=0, lt=2**20)]  # of b @ a, all rounds' stacked; 0 brings nothing
    before: Sha256  # the base that they are to be added to
    after: Sha256  # what it is then


class Request(Frozen):
    """Aggregator to trainer."""

    version: Literal[1] = PROTOCOL_VERSION
    request_id: RequestId
    study_id: StudyId
    site: Name
    task: Task
    round: Count  # 0 for prepare
    settings: StudySettings
    steps: Annotated[int, Field(ge=0)] = 0
    learning_rate: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    evaluate: bool = True
    want_initial: bool = False  # prepare: send the initial adapter with the reply
    manifest_digest: Sha256 | None = None  # the study's adapter; None for prepare
    rank: Annotated[int, Field(ge=1)] | None = None  # this site's LoRA rank; None: the study's
    change_of: Sha256 | None = None  # the payload is the change of what has this decoded digest
    merges: Merges | None = None  # the payload ends with changes of the base weights
    payload: Payload | None = None


class Evaluation(Frozen):
    """Numbers over a site's held-out rows, for one adapter."""

    examples: Count
    # Mean negative log-likelihood of a response token; dpo: of a pair's preference. Nats.
    loss: FiniteFloat
    # Dpo: pairs, and those whose chosen answer gained more on the base than the rejected one; half
    # of the undecided count.
    choice_examples: Count = 0
    choice_correct: Count = 0
    answer_examples: Count = 0
    answer_correct: Count = 0

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if (
            self.choice_correct > self.choice_examples
            or self.answer_correct > self.answer_examples
            or self.choice_examples + self.answer_examples > self.examples
        ):
            raise ValueError("evaluation counts contradict each other")
        return self

    @property
    def accuracy(self) -> float:
        """Right answers over scored items, both kinds together; 0 where nothing was scored."""
        scored = self.choice_examples + self.answer_examples
        return (self.choice_correct + self.answer_correct) / scored if scored else 0.0


class Training(Frozen):
    """Numbers of one site's local training in one round."""

    examples: Count  # rows used, with repetition
    steps: Count
    tokens: Count  # real tokens, padding not counted
    loss_first: FiniteFloat
    loss_last: FiniteFloat
    loss_mean: FiniteFloat
    update_norm: Annotated[FiniteFloat, Field(ge=0)]  # L2 norm of the change
    epoch: Annotated[FiniteFloat, Field(ge=0)]  # passes over the site's data since the study began


class Timing(Frozen):
    """Seconds the trainer spent, by part."""

    queue: Seconds = 0.0
    load: Seconds = 0.0
    decode: Seconds = 0.0
    train: Seconds = 0.0
    evaluate: Seconds = 0.0
    encode: Seconds = 0.0
    total: Seconds = 0.0


class Gpu(Frozen):
    """One GPU as the trainer's process sees it; None is a figure the driver does not give."""

    index: Annotated[int, Field(ge=0, lt=64)]
    memory_used_bytes: Count
    memory_total_bytes: Count
    utilisation: Fraction | None = None
    temperature_celsius: FiniteFloat | None = None


class Health(Frozen):
    """How the node is: travels with each reply and with the link's reports."""

    state: TrainerState = TrainerState.IDLE
    reason: Reason | None = None
    cpu: Fraction | None = None
    memory_used_bytes: Count = 0
    memory_total_bytes: Count = 0
    disk_free_bytes: Count = 0
    disk_total_bytes: Count = 0
    gpus: Annotated[tuple[Gpu, ...], Field(max_length=64)] = ()
    base_loads: Count = 0  # times the base model was loaded since the trainer started
    started_at: Annotated[FiniteFloat, Field(ge=0)] = 0.0  # unix seconds
    software: Annotated[str, StringConstraints(max_length=256)] = ""


class Description(Frozen):
    """A site's answer to prepare."""

    manifest: AdapterManifest
    initial_digest: Sha256  # of the initial adapter's float32 vector
    base_sha256: Sha256
    base_parameters: Count
    train_examples: Count
    heldout_examples: Count
    rank: Annotated[int, Field(ge=1)] | None = None  # below the study's: all this site can train
    data_fingerprint: Sha256  # keyed per site and study, so it reveals nothing but a change


class Reply(Frozen):
    """Trainer to aggregator: all that can leave a hospital."""

    version: Literal[1] = PROTOCOL_VERSION
    request_id: RequestId
    study_id: StudyId
    site: Name
    task: Task
    round: Count
    reason: Reason | None = None  # None: the work was done
    description: Description | None = None
    evaluation: Evaluation | None = None
    training: Training | None = None
    timing: Timing = Timing()
    health: Health = Health()
    payload: Payload | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.reason is not None and (self.payload or self.training or self.description):
            raise ValueError("a reply with a reason carries no result")
        if self.reason is None:
            missing = {
                Task.PREPARE: self.description is None,
                Task.TRAIN: self.training is None or self.payload is None,
                Task.EVALUATE: self.evaluation is None,
                Task.LONE: self.training is None or self.evaluation is None,
            }[self.task]
            if missing:
                raise ValueError(f"a {self.task} reply without its result")
        return self


class Progress(Frozen):
    """What the link reports while a round runs: the same fixed fields for every site."""

    version: Literal[1] = PROTOCOL_VERSION
    site: Name
    sent_at: Annotated[FiniteFloat, Field(ge=0)]  # unix seconds, the site's own clock
    study_id: StudyId | None = None
    task: Task | None = None
    round: Count = 0
    step: Count = 0
    steps: Count = 0
    loss: FiniteFloat | None = None
    tokens_per_second: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    health: Health = Health()
