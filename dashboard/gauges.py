"""The samples that are one hospital's: node, link, trainer, GPUs.

Written metric by metric and not hospital by hospital: a thousand hospitals have 33,000 samples, and
a call for each took four times as long as the comprehensions below.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from protocol import metrics
from protocol.messages import Gpu
from protocol.metrics import NODE_SILENT_SECONDS, Metric
from protocol.registry import Registry
from protocol.states import TrainerState

from .live import Report
from .models import Node

STATUSES: Final = ("unregistered", "registered", "online", "offline")
Blocks = dict[str, list[str]]

_COLUMNS: Final = select(
    Node.site,
    Node.status,
    Node.last_heartbeat_at,
    Node.last_pull_at,
    Node.wire_in_base + Node.wire_in,
    Node.wire_out_base + Node.wire_out,
    Node.refused_base + Node.refused,
).order_by(Node.site)


def hospital_samples(
    blocks: Blocks, session: Session, reports: dict[str, Report], registry: Registry, now: float
) -> None:
    """Write every hospital's samples, in the order of their names."""
    rows = session.execute(_COLUMNS).all()
    _nodes(blocks, rows)
    _reports(blocks, sorted(reports.items()))
    names = sorted({row[0] for row in rows} | set(reports) | set(registry.sites))
    revoked = {name for name, site in registry.sites.items() if site.revoked_at is not None}
    _column(blocks, metrics.NODE_REVOKED, [(name, int(name in revoked)) for name in names])
    up = _up(rows, reports, now)
    # A hospital that was revoked is not down; that it is away is what was wanted.
    _column(
        blocks,
        metrics.NODE_UP,
        [(name, int(name in up)) for name in names if name not in revoked],
    )


def _up(rows: Sequence[Any], reports: dict[str, Report], now: float) -> set[str]:
    """Those that are up, as `reading.is_up` decides it for one."""
    since = now - NODE_SILENT_SECONDS
    return {
        row[0]
        for row in rows
        if row[1] == "online"
        and ((row[3] or 0.0) > since or (row[0] in reports and reports[row[0]].received_at > since))
    }


def _nodes(blocks: Blocks, rows: Sequence[Any]) -> None:
    for status in STATUSES:
        pairs = [(row[0], 1 if row[1] == status else 0) for row in rows]
        _column(blocks, metrics.NODE_STATUS, pairs, f',status="{status}"')
    _column(blocks, metrics.NODE_HEARTBEAT, [(row[0], row[2]) for row in rows])
    _column(blocks, metrics.NODE_PULL, [(row[0], row[3]) for row in rows])
    _column(blocks, metrics.SITE_WIRE_BYTES, [(row[0], row[4]) for row in rows], _UP)
    _column(blocks, metrics.SITE_WIRE_BYTES, [(row[0], row[5]) for row in rows], _DOWN)
    _column(blocks, metrics.NODE_REFUSED, [(row[0], row[6]) for row in rows])


_UP: Final = ',direction="up"'
_DOWN: Final = ',direction="down"'


def _reports(blocks: Blocks, known: list[tuple[str, Report]]) -> None:
    _column(blocks, metrics.NODE_REPORT, [(name, one.received_at) for name, one in known])
    _column(blocks, metrics.NODE_CLOCK_OFFSET, [(name, one.clock_offset) for name, one in known])
    _column(blocks, metrics.TRAINER_RESTARTS, [(name, one.trainer_restarts) for name, one in known])
    _column(
        blocks, metrics.TRAINER_STARTED, [(name, one.trainer_started_at) for name, one in known]
    )
    progress = [(name, one.progress) for name, one in known]
    _column(
        blocks,
        metrics.SITE_PROGRESS,
        [(name, min(one.step / one.steps, 1.0) if one.steps else 0.0) for name, one in progress],
    )
    _column(
        blocks, metrics.SITE_TOKEN_RATE, [(name, one.tokens_per_second) for name, one in progress]
    )
    health = [(name, one.health) for name, one in progress]
    for state in TrainerState:
        pairs = [(name, 1 if one.state is state else 0) for name, one in health]
        _column(blocks, metrics.TRAINER_STATE, pairs, f',state="{state}"')
    for metric, field in (
        (metrics.TRAINER_BASE_LOADS, "base_loads"),
        (metrics.NODE_CPU, "cpu"),
        (metrics.NODE_MEMORY_USED, "memory_used_bytes"),
        (metrics.NODE_MEMORY_SIZE, "memory_total_bytes"),
        (metrics.NODE_DISK_FREE, "disk_free_bytes"),
        (metrics.NODE_DISK_SIZE, "disk_total_bytes"),
    ):
        _column(blocks, metric, [(name, getattr(one, field)) for name, one in health])
    _column(blocks, metrics.NODE_GPUS, [(name, len(one.gpus)) for name, one in health])
    _gpus(blocks, [(name, gpu) for name, one in health for gpu in one.gpus])


def _gpus(blocks: Blocks, gpus: list[tuple[str, Gpu]]) -> None:
    for metric, field in (
        (metrics.GPU_MEMORY_USED, "memory_used_bytes"),
        (metrics.GPU_MEMORY_SIZE, "memory_total_bytes"),
        (metrics.GPU_UTILISATION, "utilisation"),
        (metrics.GPU_TEMPERATURE, "temperature_celsius"),
    ):
        head = f'{metric.name}{{site="'
        blocks[metric.name] += [
            f'{head}{name}",gpu="{gpu.index}"}} {value!r}'
            for name, gpu in gpus
            if (value := getattr(gpu, field)) is not None
        ]


def _column(
    blocks: Blocks, metric: Metric, pairs: Iterable[tuple[str, float | None]], more: str = ""
) -> None:
    head, tail = f'{metric.name}{{site="', f'"{more}}} '
    blocks[metric.name] += [
        f"{head}{site}{tail}{value!r}" for site, value in pairs if value is not None
    ]
