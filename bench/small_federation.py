"""A federation in one process: the trainer, the codecs and the aggregators, without Flower.

Everything that decides accuracy and bytes is the project's own: `hospital_node`'s training, the
payloads of `protocol.codec` as they travel, `server.aggregation`. What is left out is the network,
so bytes are those of the payloads; headers and TLS come on top in every method alike.

    down   round 1: the whole adapter in fp32, but nothing new with the codecs of few bits, where
           sites draw it from the study's seed. Later: the whole in fp32, or with another codec
           the change (`DeltaChain`). SCAFFOLD's control variate and what FedEx and FLoRA add to the
           base come on top.
    up     the change, of the factors that trained; SCAFFOLD's control beside it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hospital_node.trainer.model import Resident, load_base
from hospital_node.trainer.sampling import derive, rows_of_round
from hospital_node.trainer.training import Done, Plan, train
from protocol.codec import (
    DeltaChain,
    ErrorFeedback,
    decode_payload,
    encode_payload,
    follow,
    get_codec,
    join_control,
    narrow,
    split_control,
    trained_part,
    with_control,
)
from protocol.manifest import AdapterManifest
from protocol.study import AdapterSettings, ModelSettings, StudySettings
from server.aggregation import Merge, ServerState, Update, make_aggregator, update_weight

from . import substitution
from .substitution import Site

Vector = NDArray[np.float32]

SITES, ALPHA, ROWS = 8, 0.1, 4096
STEPS, BATCH, RANK = 5, 8, 8
FEWEST, MOST = 2, 8  # steps of the site with the fewest and with the most rows
HELDOUT = 256  # rows of eight letters
TARGET = 0.95
CLIP = 1.0


DRAWN = ("topk", "int2", "int4", "nf4")  # StudySettings' codec.chained


@dataclass(frozen=True)
class Method:
    """An aggregator (keys of a study's [aggregation]) and the codecs of both directions."""

    name: str
    aggregation: dict[str, Any] = field(default_factory=dict)
    up: str = "fp32"
    down: str = "fp32"

    def study(self, seed: int, **aggregation: Any) -> StudySettings:
        """The settings of a study with this method; the down-link's codec is the testbed's."""
        return StudySettings.model_validate(
            {
                "name": "testbed",
                "seed": seed,
                "sites": [f"site-{k}" for k in range(SITES)],
                "model": {"base": "tiny", "quantization": "none"},
                "adapter": {"rank": RANK, "alpha": 2 * RANK},
                "rounds": {"minimum_sites": SITES},
                "aggregation": self.aggregation | aggregation,
                "codec": {"up": self.up},
            }
        )


@dataclass
class Wire:
    """Counts the payload bytes of a round, as they are and compressed with zstd."""

    up: int = 0
    down: int = 0
    up_zstd: int = 0
    down_zstd: int = 0

    def carry(
        self,
        where: Literal["up", "down"],
        codec: str,
        vector: Vector,
        manifest: AdapterManifest,
        *,
        kind: Literal["adapter", "delta"] = "delta",
        copies: int = 1,
    ) -> Vector:
        """What arrives, at each of `copies` receivers, when `vector` is sent."""
        payload, data, _ = encode_payload(codec, vector, manifest, kind)
        self.count(
            where, len(data), len(get_codec(f"{codec}+zstd").encode(vector, manifest)), copies
        )
        return decode_payload(payload, data, manifest, kind=kind, codec=codec)

    def count(self, where: Literal["up", "down"], plain: int, zstd: int, copies: int) -> None:
        """Add bytes."""
        if where == "up":
            self.up, self.up_zstd = self.up + plain * copies, self.up_zstd + zstd * copies
        else:
            self.down, self.down_zstd = self.down + plain * copies, self.down_zstd + zstd * copies


@dataclass
class Run:
    """Held-out accuracy after each round and what each cost; `start` is before the first."""

    method: str
    rates: dict[str, float]
    seed: int
    start: float
    accuracy: list[float] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    cpu_seconds: float = 0.0

    def reached(self, target: float = TARGET) -> int | None:
        """The first round, from 1, whose adapter is at `target`."""
        return next((r for r, a in enumerate(self.accuracy, 1) if a >= target), None)

    def bytes_to(self, target: float = TARGET, *, zstd: bool = False) -> int | None:
        """All bytes up to that round, both directions."""
        last = self.reached(target)
        if last is None:
            return None
        if zstd:
            return sum(wire.up_zstd + wire.down_zstd for wire in self.wires[:last])
        return sum(wire.up + wire.down for wire in self.wires[:last])


def load_resident(folder: Path) -> Resident:
    """The base in `folder` with LoRA on all linear layers, as the trainer holds it."""
    wanted = ModelSettings(base=str(folder), quantization="none")
    device = torch.device("cpu")
    base = load_base(folder, wanted, torch.float32, device)
    resident = Resident(Path(), "", 0, None, base, device, torch.float32)
    resident.use(AdapterSettings(rank=RANK, alpha=2 * RANK))
    return resident


def run(
    resident: Resident,
    method: Method,
    rates: dict[str, float],
    seed: int,
    *,
    rounds: int,
    enough: Callable[[Run], bool] = lambda _: False,
) -> Run:
    """`rounds` rounds, or until `enough`.

    `rates` has `learning_rate`, the sites', and may have more keys of [aggregation].
    """
    began = time.process_time()
    federation = Federation(resident, method, rates, seed)
    made = Run(method.name, rates, seed, federation.accuracy())
    try:
        while len(made.wires) < rounds and not enough(made):
            made.wires.append(federation.round())
            made.accuracy.append(federation.accuracy())
    finally:
        federation.close()
    made.cpu_seconds = time.process_time() - began
    return made


class Federation:
    """The aggregator and the sites between rounds."""

    def __init__(
        self, resident: Resident, method: Method, rates: dict[str, float], seed: int
    ) -> None:
        assert resident.adapter is not None
        self.resident, self.adapter, self.method = resident, resident.adapter, method
        self.rate = rates["learning_rate"]
        server = {key: value for key, value in rates.items() if key != "learning_rate"}
        self.study = method.study(seed, **server)
        self.settings, self.manifest = self.study.aggregation, self.adapter.manifest
        self.sites = substitution.sites(SITES, seed=seed, alpha=ALPHA, total=ROWS)
        self.heldout = substitution.heldout(HELDOUT, seed=seed)
        self.number = 0  # of the round
        self.vector = self.adapter.initial(seed)  # the aggregator's
        self.held = self.vector  # the sites'
        self.state, self.merges = ServerState(), dict[str, Merge]()
        self.chain: DeltaChain | None = None
        zero = np.zeros(self.manifest.numel, np.float32)
        self.controls = {site.name: zero for site in self.sites}
        self.feedback: dict[str, ErrorFeedback] = {}
        self.base = {
            name: parameter.detach().clone()
            for name, parameter in resident.model.named_parameters()
            if name.endswith("base_layer.weight")
        }

    def close(self) -> None:
        """Take what FedEx and FLoRA added to the base off again."""
        with torch.no_grad():
            for name, parameter in self.resident.model.named_parameters():
                if name in self.base:
                    parameter.copy_(self.base[name])

    def accuracy(self) -> float:
        """Share of the held-out letters that are the likeliest, those before them given."""
        self.adapter.load(self.vector)
        self.resident.model.eval()
        with torch.inference_mode():
            batch = self.resident.collate(self.heldout, np.arange(len(self.heldout)))
            hits = self.resident.response_logits(batch).argmax(-1) == batch.targets
        return float(hits.float().mean())

    def round(self) -> Wire:
        """Down, training at every site, up, aggregation."""
        self.number += 1
        wire = Wire()
        control = self._down(wire)
        aggregator = make_aggregator(
            self.study,
            self.manifest,
            self.held,
            round_number=self.number,
            state=self.state,
            total_sites=SITES,
        )
        for site in self.sites:
            aggregator.add(self._site(site, control, wire))
        aggregate = aggregator.finish()
        self.vector, self.state, self.merges = aggregate.adapter, aggregate.state, aggregate.merge
        self._add_to_base()
        return wire

    def _down(self, wire: Wire) -> Vector:
        """Bring every site to the aggregator's adapter; returns SCAFFOLD's c."""
        control = self.state.vector("c", self.manifest.numel)
        for merge in self.merges.values():
            # The factors, or their product where that is smaller.
            size = 4 * min(merge.a.size + merge.b.size, len(merge.b) * merge.a.shape[1])
            wire.count("down", size, size, SITES)
        if self.settings.strategy == "scaffold":
            both = join_control(self.vector, control)
            layout = with_control(self.manifest)
            arrived = wire.carry("down", "fp32", both, layout, kind="adapter", copies=SITES)
            self.held, control = (half.copy() for half in split_control(arrived))
        elif self.method.down.startswith(DRAWN):
            self._down_change(wire)
        elif self.number == 1 or self.method.down == "fp32":
            self.held = wire.carry(
                "down", "fp32", self.vector, self.manifest, kind="adapter", copies=SITES
            )
        else:
            self._down_change(wire)
        return control

    def _down_change(self, wire: Wire) -> None:
        if self.chain is None:
            if self.number == 1:
                self.held = self.vector
            self.chain = DeltaChain.start(self.held)
        codec, feedback = self.method.down, self.settings.lora != "flexlora"
        advance = partial(self.chain.advance, self.vector, self.manifest, feedback=feedback)
        link, zstd = advance(codec=codec), advance(codec=f"{codec}+zstd")
        wire.count("down", len(link.data), len(zstd.data), SITES)
        layout = self.manifest
        change = decode_payload(link.payload, link.data, layout, kind="delta", codec=codec)
        self.held = follow(self.held, link.base, change)
        self.chain = link.after

    def _part(self, number: int) -> AdapterManifest:
        """What changed in round `number`."""
        return trained_part(self.manifest, self.settings.trained_factors(number))

    def _site(self, site: Site, control: Vector, wire: Wire) -> Update:
        """One site's round: training and what it sends."""
        steps = round(STEPS * SITES * site.share)
        steps = min(max(steps, FEWEST), MOST)
        chosen = rows_of_round(
            len(site.tokens),
            seed=self.study.seed,
            site=site.name,
            round_number=self.number,
            stride=steps * BATCH,
            draws=steps * BATCH,
        )
        scaffold, old = self.settings.strategy == "scaffold", self.controls[site.name]
        plan = Plan(
            batch_size=BATCH,
            learning_rate=self.rate,
            weight_decay=0.0,
            max_grad_norm=CLIP,
            seed=derive("dropout", self.study.seed, site.name, self.number),
            factors=frozenset(self.settings.trained_factors(self.number)),
            proximal_mu=self.settings.proximal,
            correction=control - old if scaffold else None,
        )
        self.adapter.load(self.held)
        done = train(self.resident, self.adapter, site.tokens, chosen, plan, lambda *_: None)
        if done.gradient is None:
            return self._up(site, done, wire)
        self.controls[site.name] = done.gradient
        return self._up(site, done, wire, control=done.gradient - old)

    def _up(self, site: Site, done: Done, wire: Wire, control: Vector | None = None) -> Update:
        delta = self.adapter.read() - self.held
        weight = update_weight(
            self.settings, examples=done.examples, loss=sum(done.losses) / len(done.losses)
        )
        steps, codec = len(done.losses), self.method.up
        if control is not None:
            both, layout = join_control(delta, control), with_control(self.manifest)
            delta, control = split_control(wire.carry("up", codec, both, layout))
            return Update(site.name, weight, delta, control=control, steps=steps)
        part = self._part(self.number)
        wanted = narrow(delta, self.manifest, part)
        if self.study.codec.feedback:
            feedback = self.feedback.get(site.name) or ErrorFeedback.new(part.numel)
            wanted = feedback.add_to(wanted)
            arrived = wire.carry("up", codec, wanted, part)
            self.feedback[site.name] = feedback.after(wanted, arrived)
        else:
            arrived = wire.carry("up", codec, wanted, part)
        return Update(site.name, weight, arrived, manifest=part, steps=steps)

    def _add_to_base(self) -> None:
        """W += scale * b @ a, as every site would."""
        if not self.merges:
            return
        with torch.no_grad():
            for name, module in self.resident.model.named_modules():
                if (merge := self.merges.get(name)) is not None:
                    change = torch.from_numpy(merge.b @ merge.a)
                    module.base_layer.weight += module.scaling["default"] * change
