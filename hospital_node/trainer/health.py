"""How the node is: CPU, memory, disk and GPUs, as numbers that fit `protocol.messages.Health`."""

import contextlib
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import psutil

from protocol.messages import Gpu, Health
from protocol.states import Reason, TrainerState

_FRESH_SECONDS: Final = 1.0  # the link asks every 2 s; an NVML query can take 20 ms


class HealthReader:
    """Reads the machine's figures, at most once a second."""

    def __init__(self, folder: Path, loads: Callable[[], int]) -> None:
        """`folder` is on the disk whose room matters; `loads()` counts base model loads."""
        self._folder = folder
        self._loads = loads
        self._started_at = time.time()
        self._lock = threading.Lock()
        self._read_at = -_FRESH_SECONDS
        self._figures: dict[str, Any] = {}
        self._software = software()
        psutil.cpu_percent(None)  # the first call only sets the beginning of the first interval

    def read(self, state: TrainerState, reason: Reason | None = None) -> Health:
        """The figures now, with the trainer's `state`."""
        with self._lock:
            if time.monotonic() - self._read_at >= _FRESH_SECONDS:
                self._figures = self._measure()
                self._read_at = time.monotonic()
            return Health(
                state=state,
                reason=reason,
                base_loads=self._loads(),
                started_at=self._started_at,
                software=self._software,
                **self._figures,
            )

    def _measure(self) -> dict[str, Any]:
        memory = psutil.virtual_memory()
        figures: dict[str, Any] = {
            "cpu": min(1.0, max(0.0, psutil.cpu_percent(None) / 100)),
            "memory_used_bytes": memory.total - memory.available,
            "memory_total_bytes": memory.total,
            "gpus": _gpus(),
        }
        with contextlib.suppress(OSError):
            disk = shutil.disk_usage(self._folder)
            figures |= {"disk_free_bytes": disk.free, "disk_total_bytes": disk.total}
        return figures


def software() -> str:
    """Versions of what the results depend on, without importing any of it."""
    parts = [f"python {platform.python_version()}"]
    for name in ("torch", "transformers", "peft", "bitsandbytes"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            parts.append(f"{name} {metadata.version(name)}")
    return "; ".join(parts)


def _gpus() -> tuple[Gpu, ...]:
    """The GPUs of this process; empty while torch is not loaded or has none."""
    torch = sys.modules.get("torch")
    # Half-imported while the worker starts: no `cuda` yet.
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not getattr(cuda, "is_available", bool)():
        return ()
    found = []
    for index in range(min(64, cuda.device_count())):
        try:
            free, total = cuda.mem_get_info(index)
        except RuntimeError:
            continue
        used = max(0, total - free)
        utilisation, temperature = _driver_figures(cuda, index)
        found.append(
            Gpu(
                index=index,
                memory_used_bytes=used,
                memory_total_bytes=total,
                utilisation=utilisation,
                temperature_celsius=temperature,
            )
        )
    return tuple(found)


def _driver_figures(cuda: Any, index: int) -> tuple[float | None, float | None]:
    """Utilisation (0 to 1) and temperature through NVML, None each where it is not installed."""
    try:
        return min(1.0, cuda.utilization(index) / 100), float(cuda.temperature(index))
    except Exception:  # noqa: BLE001 - pynvml is optional and raises classes of its own
        return None, None
