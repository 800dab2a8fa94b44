"""The samples that are one hospital's: node, link, trainer, GPUs."""

from collections.abc import Iterable
from typing import Any, Final

from protocol import metrics
from protocol.metrics import Metric
from protocol.registry import Registry
from protocol.states import TrainerState

from .live import Report
from .reading import is_up

STATUSES: Final = ("unregistered", "registered", "online", "offline")


def hospital_samples(
    blocks: dict[str, list[str]],
    rows: Iterable[Any],
    reports: dict[str, Report],
    registry: Registry,
    now: float,
) -> None:
    """Write every hospital's samples, in the order of their names."""
    known = {row.site: row for row in rows}
    for site in sorted(set(known) | set(reports) | set(registry.sites)):
        enrolled = registry.sites.get(site)
        revoked = enrolled is not None and enrolled.revoked_at is not None
        _put(blocks, metrics.NODE_REVOKED, site, int(revoked))
        row, report = known.get(site), reports.get(site)
        # A hospital that was revoked is not down; that it is away is what was wanted.
        if not revoked:
            _put(blocks, metrics.NODE_UP, site, int(is_up(row, report, now)))
        if row is not None:
            _node(blocks, site, row)
        if report is not None:
            _report(blocks, site, report)


def _node(blocks: dict[str, list[str]], site: str, row: Any) -> None:
    for status in STATUSES:
        _put(blocks, metrics.NODE_STATUS, site, int(row.status == status), f',status="{status}"')
    if row.last_heartbeat_at is not None:
        _put(blocks, metrics.NODE_HEARTBEAT, site, row.last_heartbeat_at)
    if row.last_pull_at is not None:
        _put(blocks, metrics.NODE_PULL, site, row.last_pull_at)
    up, down = row.wire_in_base + row.wire_in, row.wire_out_base + row.wire_out
    _put(blocks, metrics.SITE_WIRE_BYTES, site, up, ',direction="up"')
    _put(blocks, metrics.SITE_WIRE_BYTES, site, down, ',direction="down"')
    _put(blocks, metrics.NODE_REFUSED, site, row.refused_base + row.refused)


def _report(blocks: dict[str, list[str]], site: str, report: Report) -> None:
    progress, health = report.progress, report.progress.health
    _put(blocks, metrics.NODE_REPORT, site, report.received_at)
    _put(blocks, metrics.NODE_CLOCK_OFFSET, site, report.clock_offset)
    _put(blocks, metrics.TRAINER_RESTARTS, site, report.trainer_restarts)
    _put(blocks, metrics.TRAINER_STARTED, site, report.trainer_started_at)
    _put(blocks, metrics.TRAINER_BASE_LOADS, site, health.base_loads)
    for state in TrainerState:
        _put(blocks, metrics.TRAINER_STATE, site, int(health.state is state), f',state="{state}"')
    done = progress.step / progress.steps if progress.steps else 0.0
    _put(blocks, metrics.SITE_PROGRESS, site, min(done, 1.0))
    _put(blocks, metrics.SITE_TOKEN_RATE, site, progress.tokens_per_second)
    if health.cpu is not None:
        _put(blocks, metrics.NODE_CPU, site, health.cpu)
    _put(blocks, metrics.NODE_MEMORY_USED, site, health.memory_used_bytes)
    _put(blocks, metrics.NODE_MEMORY_SIZE, site, health.memory_total_bytes)
    _put(blocks, metrics.NODE_DISK_FREE, site, health.disk_free_bytes)
    _put(blocks, metrics.NODE_DISK_SIZE, site, health.disk_total_bytes)
    _put(blocks, metrics.NODE_GPUS, site, len(health.gpus))
    for gpu in health.gpus:
        own = f',gpu="{gpu.index}"'
        _put(blocks, metrics.GPU_MEMORY_USED, site, gpu.memory_used_bytes, own)
        _put(blocks, metrics.GPU_MEMORY_SIZE, site, gpu.memory_total_bytes, own)
        if gpu.utilisation is not None:
            _put(blocks, metrics.GPU_UTILISATION, site, gpu.utilisation, own)
        if gpu.temperature_celsius is not None:
            _put(blocks, metrics.GPU_TEMPERATURE, site, gpu.temperature_celsius, own)


def _put(
    blocks: dict[str, list[str]], metric: Metric, site: str, value: float, more: str = ""
) -> None:
    blocks[metric.name].append(f'{metric.name}{{site="{site}"{more}}} {value!r}')
