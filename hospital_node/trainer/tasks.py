"""The four things a trainer can be asked, each from a checked request to a reply.

Nothing here sends anything: a task returns the reply's numbers and, where there is one, the update
whose tensors the door (`hospital_node.outbound`) will check.
"""

import hmac
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hospital_node.outbound import Update
from protocol.codec import narrow, of_rank, vector_digest
from protocol.messages import (
    Description,
    Evaluation,
    Reply,
    Request,
    Task,
    Timing,
    Training,
)
from protocol.schedule import learning_rate
from protocol.site import SiteSettings
from protocol.states import Reason, TrainerState
from protocol.study import StudySettings

from . import sampling, tokens
from .adapter import Adapter, Vector, affordable_rank, initial, of_smaller_rank, tensors_of
from .board import Board
from .crew import Crew
from .data import Rows
from .errors import Cancelled, Refusal
from .evaluation import evaluate
from .live_data import LiveData
from .merging import merge
from .model import Resident, Shelf
from .preference import Pairs, ask_base, evaluate_pairs, paired_rows
from .templates import Template
from .training import Done, Plan, train
from .wire import Received, Wire

log = logging.getLogger("fedward.trainer")


@dataclass(frozen=True)
class Answer:
    """A reply's numbers and the tensors beside them."""

    reply: Reply
    update: Update | None = None


@dataclass(frozen=True)
class _Ready:
    """All that a task works with."""

    resident: Resident
    adapter: Adapter
    train: tokens.TokenSet | Pairs
    heldout: tokens.HeldoutSet | Pairs
    rows: Rows
    rank: int | None  # below the study's


@dataclass
class _Clock:
    """Seconds by part of `Timing`."""

    queue: float
    began: float = field(default_factory=time.monotonic)
    parts: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - started
            self.parts[part] = self.parts.get(part, 0.0) + seconds

    def timing(self) -> Timing:
        return Timing(queue=self.queue, total=time.monotonic() - self.began, **self.parts)


class Tasks:
    """The worker's hands: the resident models, the tokenized data, and the four tasks."""

    def __init__(self, site: SiteSettings, data: LiveData, secret: bytes, board: Board) -> None:
        """`secret` keys the fingerprint of the data."""
        self.site = site
        self.shelf = Shelf(site)
        self.crew = Crew(site)
        self._data = data
        self._wire = Wire(site.state)
        self._secret = secret
        self._board = board
        self._tokenized: dict[str, tuple[tokens.TokenSet, tokens.HeldoutSet]] = {}
        self._paired: dict[str, tuple[Pairs, Pairs]] = {}

    def answer(
        self, request: Request, payload: bytes, queue: float, cancel: threading.Event
    ) -> Answer:
        """Do what the request asks; `queue` is how long it waited, in seconds.

        Raises:
            Refusal, ProtocolError: it cannot be done.
            Cancelled: `cancel` was set.
            Exception: whatever a library raises; the caller makes a reason code of it.
        """
        do = {
            Task.PREPARE: self._prepare,
            Task.TRAIN: self._train,
            Task.EVALUATE: self._evaluate,
            Task.LONE: self._lone,
        }[request.task]
        return do(request, payload, _Clock(queue), _checker(cancel))

    # The tasks

    def _prepare(
        self, request: Request, _: bytes, clock: _Clock, check: Callable[[], None]
    ) -> Answer:
        self._data.look()
        ready = self._ready(request, clock)
        manifest = ready.adapter.manifest
        mine, manifest = ready.adapter.manifest, ready.adapter.manifest
        first = ready.adapter.initial(request.settings.seed)
        if ready.rank is not None:  # the study's adapter, of which this site trains a part
            manifest = of_rank(mine, request.settings.adapter.rank)
            first = initial(manifest, request.settings.seed)
        evaluation = None
        if request.evaluate:
            ready.adapter.load(first if manifest == mine else narrow(first, manifest, mine))
            evaluation = self._measure(ready, request.settings, clock, check)
        fingerprint = f"{request.study_id}\0{ready.rows.digest}".encode()
        description = Description(
            manifest=manifest,
            initial_digest=vector_digest(first),
            base_sha256=ready.resident.sha256,
            base_parameters=ready.resident.parameters,
            train_examples=len(ready.train),
            heldout_examples=ready.heldout.rows,
            rank=ready.rank,
            data_fingerprint=hmac.new(self._secret, fingerprint, "sha256").hexdigest(),
        )
        update = None
        if request.want_initial:
            update = Update("adapter", tensors_of(first, manifest), manifest, "fp32")
        reply = self._reply(request, clock, description=description, evaluation=evaluation)
        return Answer(reply, update)

    def _train(
        self, request: Request, payload: bytes, clock: _Clock, check: Callable[[], None]
    ) -> Answer:
        ready = self._ready(request, clock)
        received = self._receive(ready, request, payload, clock)
        evaluation = None
        if request.evaluate:
            evaluation = self._measure(ready, request.settings, clock, check)
        mine = ready.adapter.manifest
        plan = self._plan(request.settings, request.round, request.learning_rate)
        plan = replace(plan, proximal_mu=request.settings.aggregation.proximal)
        if received.control is not None:
            plan = replace(plan, correction=self._wire.correction(request, received, mine))
        steps = min(request.steps, self.site.limits.max_steps)
        rows = self._rows_of(ready, request.settings, request.round, steps)
        self._board.enter(TrainerState.TRAINING, steps)
        with clock("train"):
            done = self._together(ready, request.settings, rows, plan, self._on_step(check))
            delta = ready.adapter.read() - received.adapter
        passes = self._epoch(ready, request.settings, request.round, len(done.losses))
        training = _training(done, delta, passes)
        limits = (self.site.limits.max_update_norm, request.settings.aggregation.max_update_norm)
        update = self._wire.update(request, delta, done.gradient, mine, max_norm=min(limits))
        reply = self._reply(request, clock, training=training, evaluation=evaluation)
        return Answer(reply, update)

    def _evaluate(
        self, request: Request, payload: bytes, clock: _Clock, check: Callable[[], None]
    ) -> Answer:
        ready = self._ready(request, clock)
        self._receive(ready, request, payload, clock)
        evaluation = self._measure(ready, request.settings, clock, check)
        return Answer(self._reply(request, clock, evaluation=evaluation))

    def _lone(
        self, request: Request, payload: bytes, clock: _Clock, check: Callable[[], None]
    ) -> Answer:
        """Train without the others: same first adapter, rows, steps, rates and fresh optimizers.

        The first adapter is the one that came, or, where none came, drawn here from the seed.
        """
        ready = self._ready(request, clock)
        settings, rounds = request.settings, request.settings.rounds.count
        if request.payload is not None:
            first = self._receive(ready, request, payload, clock).adapter
        else:
            first = ready.adapter.initial(settings.seed)
            ready.adapter.load(first)
        steps = min(settings.training.steps, self.site.limits.max_steps)
        self._board.enter(TrainerState.TRAINING, steps * rounds)
        total, on_step = Done(), self._on_step(check)
        with clock("train"):
            for number in range(1, rounds + 1):
                rate = learning_rate(settings.training, number, rounds)
                rows = self._rows_of(ready, settings, number, steps)
                plan = self._plan(settings, number, rate)
                done = self._together(ready, settings, rows, plan, on_step)
                total.losses += done.losses
                total.tokens += done.tokens
                total.examples += done.examples
            delta = ready.adapter.read() - first
        training = _training(total, delta, self._epoch(ready, settings, rounds, steps))
        evaluation = self._measure(ready, settings, clock, check)
        reply = self._reply(request, clock, training=training, evaluation=evaluation)
        return Answer(reply)

    # Their parts

    def _together(
        self,
        ready: _Ready,
        settings: StudySettings,
        rows: Any,
        plan: Plan,
        on_step: Callable[[float, int], None],
    ) -> Done:
        """Train the adapter that is in the model now, on all of this site's GPUs."""
        resident, adapter, examples = ready.resident, ready.adapter, ready.train
        if resident.changed:  # rounds have added to this process's base and to no other's
            return train(resident, adapter, examples, rows, plan, on_step)
        if isinstance(examples, Pairs):
            ask_base(resident, examples, rows, lambda: None)
        with self.crew.work(
            settings.model, adapter.settings, adapter.read(), examples, rows, plan
        ) as team:
            return train(resident, adapter, examples, rows, plan, on_step, team)

    def _ready(self, request: Request, clock: _Clock) -> _Ready:
        """The base, the adapter and the tokens for a request; from memory when they are there."""
        settings = request.settings
        self._board.enter(TrainerState.LOADING)
        with clock("load"):
            self.crew.read_base(settings.model)
            resident = self.shelf.get(settings.model, base=_base_wanted(request))
            prepares = request.task is Task.PREPARE
            rank = self._rank(resident, settings) if prepares else request.rank
            if settings.adapter.has_rank:
                self._check_rank(rank or settings.adapter.rank)
            adapter = resident.use(of_smaller_rank(settings.adapter, rank))
            train_set, heldout = self._examples(resident, settings)
        return _Ready(resident, adapter, train_set, heldout, self._data.rows, rank)

    def _examples(
        self, resident: Resident, settings: StudySettings
    ) -> tuple[tokens.TokenSet, tokens.HeldoutSet] | tuple[Pairs, Pairs]:
        """What the objective trains and is evaluated on."""
        if settings.training.objective == "dpo":
            return self._pairs(resident, settings)
        return self._tokens(resident, settings)

    def _rank(self, resident: Resident, settings: StudySettings) -> int | None:
        """The LoRA rank this site can train; None is the study's own."""
        wanted = settings.adapter.rank
        if not settings.mixed_ranks:
            return None
        rank = min(wanted, self.site.limits.max_rank)
        rank = affordable_rank(resident.use(of_smaller_rank(settings.adapter, rank)), rank)
        if rank < wanted:
            log.info("this site trains with rank %d of the study's %d", rank, wanted)
        return rank if rank < wanted else None

    def _check_rank(self, rank: int) -> None:
        limit = self.site.limits.max_rank
        if rank > limit:
            raise Refusal(
                Reason.SITE_FORBIDS,
                f"adapter.rank = {rank} is above this site's limits.max_rank = {limit}",
            )

    def _text_key(
        self, resident: Resident, settings: StudySettings
    ) -> tuple[str, str, str, Template, int]:
        """All that decides the tokens of this site's rows; the last is the longest sequence."""
        length = min(settings.training.max_length, self.site.limits.max_length, resident.room)
        return (
            self._secret.hex(),
            self._data.rows.digest,
            tokens.tokenizer_digest(resident.tokenizer),
            settings.prompt.template,
            length,
        )

    def _pairs(self, resident: Resident, settings: StudySettings) -> tuple[Pairs, Pairs]:
        key = self._text_key(resident, settings)
        model = (resident.sha256, settings.model.quantization.value, str(resident.dtype),
                 settings.model.double_quantization, resident.device.type)  # fmt: skip
        name = tokens.cache_name("pairs", *key, *model)
        if name not in self._paired:
            self._paired[name] = paired_rows(
                resident.tokenizer,
                settings.prompt.template,
                self._data.rows,
                key[-1],
                self.site.model.cache / name,
            )
        return self._paired[name]

    def _tokens(
        self, resident: Resident, settings: StudySettings
    ) -> tuple[tokens.TokenSet, tokens.HeldoutSet]:
        template = settings.prompt.template
        key = self._text_key(resident, settings)
        name, length = tokens.cache_name(*key), key[-1]
        if name not in self._tokenized:
            path = self.site.model.cache / name
            sets = tokens.load(path)
            if sets is None:
                sets = (
                    tokens.tokenize_rows(
                        resident.tokenizer, template, self._data.rows.train, length
                    ),
                    tokens.tokenize_heldout(
                        resident.tokenizer, template, self._data.rows.heldout, length
                    ),
                )
                tokens.save(path, *sets)
            cut = sets[0].truncated + sets[1].sequences.truncated
            if cut:
                log.warning("%d sequences were cut to %d tokens", cut, length)
            self._tokenized[name] = sets
        return self._tokenized[name]

    def _receive(self, ready: _Ready, request: Request, payload: bytes, clock: _Clock) -> Received:
        """Decode what came and put it into the model."""
        with clock("decode"):
            received = self._wire.receive(request, payload, ready.adapter)
            if request.merges is not None and received.merges is not None:
                merge(ready.resident, request.merges, received.merges)
            ready.adapter.load(received.adapter)
        return received

    def _measure(
        self, ready: _Ready, settings: StudySettings, clock: _Clock, check: Callable[[], None]
    ) -> Evaluation:
        rows = sampling.subset(
            ready.heldout.rows, settings.evaluation.max_examples, seed=settings.seed
        )
        self._board.enter(TrainerState.EVALUATING)

        def on_batch(done: int, sequences: int) -> None:
            self._board.step(done, steps=sequences)
            check()

        with clock("evaluate"):
            if isinstance(ready.heldout, Pairs):
                beta = settings.training.dpo_beta
                return evaluate_pairs(ready.resident, ready.heldout, rows, beta, on_batch)
            return evaluate(ready.resident, ready.heldout, rows, on_batch)

    def _plan(self, settings: StudySettings, round_number: int, rate: float) -> Plan:
        training = settings.training
        return Plan(
            batch_size=self._batch_size(settings),
            learning_rate=rate,
            weight_decay=training.weight_decay,
            max_grad_norm=training.max_grad_norm,
            seed=sampling.derive("dropout", settings.seed, self.site.name, round_number),
            factors=frozenset(settings.aggregation.trained_factors(round_number)),
            eight_bit=training.optimizer == "adamw-8bit",
            seconds=training.max_seconds or math.inf,
            beta=training.dpo_beta,
        )

    def _batch_size(self, settings: StudySettings) -> int:
        return min(settings.training.batch_size, self.site.limits.max_batch_size)

    def _stride(self, settings: StudySettings, steps: int) -> int:
        planned = min(settings.training.steps, self.site.limits.max_steps)
        return max(planned, steps) * self._batch_size(settings)

    def _rows_of(
        self, ready: _Ready, settings: StudySettings, round_number: int, steps: int
    ) -> Any:
        return sampling.rows_of_round(
            len(ready.train),
            seed=settings.seed,
            site=self.site.name,
            round_number=round_number,
            stride=self._stride(settings, steps),
            draws=steps * self._batch_size(settings),
        )

    def _epoch(
        self, ready: _Ready, settings: StudySettings, round_number: int, steps: int
    ) -> float:
        """Passes over the site's rows from the study's beginning to the end of this round."""
        before = (round_number - 1) * self._stride(settings, steps)
        return (before + steps * self._batch_size(settings)) / len(ready.train)

    def _on_step(self, check: Callable[[], None]) -> Callable[[float, int], None]:
        count = 0

        def on_step(loss: float, real_tokens: int) -> None:
            nonlocal count
            count += 1
            self._board.step(count, loss=loss, tokens=real_tokens)
            check()

        return on_step

    def _reply(self, request: Request, clock: _Clock, **results: Any) -> Reply:
        # Not checked here: a reply is whole only with its payload, which is made at the door.
        return Reply.model_construct(
            request_id=request.request_id,
            study_id=request.study_id,
            site=self.site.name,
            task=request.task,
            round=request.round,
            timing=clock.timing(),
            health=self._board.health.read(TrainerState.IDLE),
            **results,
        )


def _checker(cancel: threading.Event) -> Callable[[], None]:
    def check() -> None:
        if cancel.is_set():
            raise Cancelled

    return check


def _base_wanted(request: Request) -> tuple[str, ...]:
    """The states of the base that will do for a request; none given: as it was read."""
    return (request.merges.before, request.merges.after) if request.merges else ()


def _training(done: Done, delta: Vector, epoch: float) -> Training:
    norm = math.sqrt(float(np.dot(delta.astype(np.float64), delta.astype(np.float64))))
    if not math.isfinite(norm):
        raise Refusal(Reason.NOT_FINITE, "the trained adapter has a value that is not finite")
    return Training(
        examples=done.examples,
        steps=len(done.losses),
        tokens=done.tokens,
        loss_first=done.losses[0],
        loss_last=done.losses[-1],
        loss_mean=sum(done.losses) / len(done.losses),
        update_norm=norm,
        epoch=epoch,
    )
