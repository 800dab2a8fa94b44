"""What a study will cost, told before its first round: bytes, seconds, memory, disk.

Nothing here is a constant of somebody else's machine: the bytes are those of an encoding made here,
the seconds come from what each hospital did last (its rounds of an earlier study on the same base,
or its measuring of the base in prepare), the speed of its link from what it last sent.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from protocol.codec import encode_payload
from protocol.errors import FedwardError
from protocol.events import SiteForecast, SitePrepared, SiteResult, StudyQueued
from protocol.layout import down_layout, up_layout
from protocol.manifest import AdapterManifest, TensorSpec
from protocol.messages import Health
from protocol.states import SiteOutcome
from protocol.study import StudySettings

from .checkpoint import KEEP
from .journal import read_journal

_SAMPLE: Final = 1 << 20  # values encoded to see how many bytes a codec makes of one
# A step computes forward and backward through a frozen base: the backward pass of a matrix product
# costs one more product for its input, and attention twice its forward. Measured on CPU and small
# models a training step is 2.5 to 3 times the forward pass of the same rows.
_BACKWARD: Final = 3.0
_REPLY_HEADER: Final = 1500  # bytes of a train reply's numbers, names and signature
_TRAINING_BYTES: Final = 12  # a value's gradient and AdamW's two moments, float32
_PAST_STUDIES: Final = 5
_TIGHT: Final = 0.5  # share of what is free above which there is a warning


@dataclass(frozen=True)
class Pace:
    """What is known of a hospital: seconds a step, and payload bytes a second on its link."""

    step: float | None = None
    link: float | None = None


@dataclass(frozen=True)
class Forecast:
    """See `protocol.events.StudyForecast`, which carries it; `refusal` says why it cannot fit."""

    sites: tuple[SiteForecast, ...]
    bytes_up: int
    bytes_down: int
    seconds_round: float | None
    memory_bytes: int
    memory_free_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    warnings: tuple[str, ...] = field(default=())
    refusal: str | None = None


FORECAST_FIELDS: Final = tuple(name for name in Forecast.__annotations__ if name != "refusal")


def forecast(
    settings: StudySettings,
    manifest: AdapterManifest,
    prepared: Mapping[str, SitePrepared],
    ranks: Mapping[str, int | None],
    paces: Mapping[str, Pace],
    folder: Path,
) -> Forecast:
    """The cost of a whole study of the hospitals in `prepared`, its state kept in `folder`."""
    sites = tuple(
        _site(settings, manifest, prepared[name], ranks[name], paces.get(name, Pace()))
        for name in sorted(prepared)
    )
    rounds = settings.rounds.count
    known = [site.seconds for site in sites if site.seconds is not None]
    seconds = max(known) if len(known) == len(sites) else None
    memory = aggregator_bytes(settings, manifest.numel, len(sites))
    up, down = (sum(getattr(site, name) for site in sites) for name in ("bytes_up", "bytes_down"))
    disk = _disk_bytes(settings, manifest.numel, up + down)
    made = Forecast(
        sites=sites,
        bytes_up=up * rounds,
        bytes_down=down * rounds,
        seconds_round=seconds,
        memory_bytes=memory,
        memory_free_bytes=psutil.virtual_memory().available,
        disk_bytes=disk,
        disk_free_bytes=shutil.disk_usage(folder).free,
    )
    return _judged(made, settings)


def _site(
    settings: StudySettings,
    manifest: AdapterManifest,
    prepared: SitePrepared,
    rank: int | None,
    pace: Pace,
) -> SiteForecast:
    layouts = {
        "up": up_layout(settings, manifest, 1, rank),
        "down": down_layout(settings, manifest, rank),
    }
    codecs = {"up": settings.codec.up, "down": settings.codec.down}
    # A request is as long as prepare's was, which carried no adapter.
    header = {"up": _REPLY_HEADER, "down": prepared.bytes_down}
    size = {
        way: header[way] + encoded_bytes(codecs[way], layout.numel)
        for way, layout in layouts.items()
    }
    seconds = None
    if pace.step is not None:
        seconds = pace.step * settings.training.steps
        if settings.training.max_seconds is not None:
            seconds = min(seconds, settings.training.max_seconds)
        if pace.link is not None:
            seconds += sum(size.values()) / pace.link
    return SiteForecast(
        site=prepared.site,
        bytes_up=size["up"],
        bytes_down=size["down"],
        seconds=seconds,
        link_bytes_per_second=pace.link,
        memory_bytes=_TRAINING_BYTES * layouts["up"].numel,
        memory_free_bytes=_free(prepared.health),
    )


def encoded_bytes(codec: str, numel: int) -> int:
    """The bytes that `codec` makes of `numel` normal values, by encoding up to a million."""
    count = min(numel, _SAMPLE)
    layout = AdapterManifest(tensors=(TensorSpec(name="sample", shape=(count,)),))
    values = np.random.default_rng(0).standard_normal(count, dtype=np.float32)
    payload, _, _ = encode_payload(codec, values, layout, "delta")
    return round(payload.size * numel / count)


def aggregator_bytes(settings: StudySettings, numel: int, sites: int) -> int:
    """Memory of the aggregator's process for one round; see `make_aggregator` for the methods'.

    Beside the method's there are the adapter, the first one and the reference, one update as it
    comes in (encoded, decoded, laid out) and the checkpoint as it is written (twice).
    """
    aggregation = settings.aggregation
    if aggregation.lora == "flexlora":
        method = 4 * min(sites, aggregation.stack_sites)
    elif aggregation.changes_base:
        method = 8 + 4 * sites + 4 * sites * settings.rounds.count
    elif aggregation.strategy in {"median", "trimmed-mean", "krum", "multi-krum"}:
        method = 4 * sites
    else:
        method = 16 if aggregation.strategy == "scaffold" else 8
    return (method + 3 * 4 + 3 * 4 + 2 * _checkpoint_values(settings) * 4) * numel


def _checkpoint_values(settings: StudySettings) -> int:
    """Values a checkpoint holds for each of the adapter's."""
    remembered = {"fedavgm": 1, "fedadagrad": 1, "fedyogi": 2, "fedadam": 2, "scaffold": 1}
    chained = 2 if settings.codec.chained else 0
    return 2 + remembered.get(settings.aggregation.strategy, 0) + chained


def _disk_bytes(settings: StudySettings, numel: int, round_bytes: int) -> int:
    """The checkpoints (one more than are kept, while it is written), the adapter, and what Flower
    stores of two rounds' messages."""
    return ((KEEP + 1) * _checkpoint_values(settings) + 1) * 4 * numel + 2 * round_bytes


def _free(health: Health | None) -> int | None:
    if health is None or not health.memory_total_bytes:
        return None
    if health.gpus:
        return sum(gpu.memory_total_bytes - gpu.memory_used_bytes for gpu in health.gpus)
    return max(0, health.memory_total_bytes - health.memory_used_bytes)


def _judged(made: Forecast, settings: StudySettings) -> Forecast:
    """With what is tight or cannot be."""
    warnings, refusal = [], None
    for what, needed, free in (
        ("memory", made.memory_bytes, made.memory_free_bytes),
        ("disk", made.disk_bytes, made.disk_free_bytes),
    ):
        sentence = f"the aggregator needs {_size(needed)} of {what} and has {_size(free)} free"
        if needed > free:
            refusal = refusal or (
                f"{sentence}: use a smaller adapter.rank, a strategy that streams (fedavg), or a "
                "larger machine"
            )
        elif needed > _TIGHT * free:
            warnings.append(sentence)
    for site in made.sites:
        room = site.memory_free_bytes
        if room is not None and site.memory_bytes > _TIGHT * room:
            warnings.append(
                f"{site.site} needs {_size(site.memory_bytes)} to train the adapter and has "
                f"{_size(room)} free"
            )
        deadline = settings.rounds.deadline_seconds
        if site.seconds is not None and site.seconds > deadline:
            warnings.append(
                f"{site.site} needs about {site.seconds:.0f} s a round; "
                f"rounds.deadline_seconds = {deadline:g}"
            )
    return Forecast(**(vars(made) | {"warnings": tuple(warnings), "refusal": refusal}))


def known_paces(
    settings: StudySettings, prepared: Mapping[str, SitePrepared], studies: Path
) -> dict[str, Pace]:
    """How fast each hospital is: by its last rounds on the same base, else by prepare."""
    paces = {name: _by_prepare(settings, event) for name, event in prepared.items()}
    for results, same in _past(settings, studies):
        for result in results:
            if result.site not in paces or result.training is None or not result.training.steps:
                continue
            old = paces[result.site]
            step = result.timing.train / result.training.steps if same else old.step
            waited = result.seconds - result.timing.total
            carried = result.bytes_up + result.bytes_down
            paces[result.site] = Pace(step, carried / waited if waited > 0 else old.link)
    return paces


def _by_prepare(settings: StudySettings, event: SitePrepared) -> Pace:
    """A step is a batch of rows, forward and backward; prepare measured rows forward."""
    step = link = None
    if event.evaluation is not None and event.evaluation.examples and event.timing.evaluate:
        row = event.timing.evaluate / event.evaluation.examples
        step = _BACKWARD * row * settings.training.batch_size
    waited = event.seconds - event.timing.total
    if event.codec_up and waited > 0:  # the lead, which sent the first adapter
        link = (event.bytes_up + event.bytes_down) / waited
    return Pace(step, link)


def _past(settings: StudySettings, studies: Path) -> Iterable[tuple[Sequence[SiteResult], bool]]:
    """Good results of the latest studies, oldest first, and whether a step was the same work."""
    try:
        journals = sorted(studies.glob("*/events.jsonl"), key=lambda path: path.stat().st_mtime)
    except OSError:
        return
    for path in journals[-_PAST_STUDIES:]:
        try:
            events = list(read_journal(path))
        except (FedwardError, OSError):
            continue
        queued = next((event for event in events if isinstance(event, StudyQueued)), None)
        if queued is None:
            continue
        alike = all(
            getattr(queued.settings, part) == getattr(settings, part)
            for part in ("model", "adapter", "prompt")
        )
        old, new = queued.settings.training, settings.training
        same = alike and (old.batch_size, old.max_length) == (new.batch_size, new.max_length)
        good = [e for e in events if isinstance(e, SiteResult) and e.outcome is SiteOutcome.OK]
        yield good, same


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
