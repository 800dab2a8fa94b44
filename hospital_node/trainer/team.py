"""Data parallel: the processes of one hospital that train one batch together, a GPU each.

Every process holds the base and the same adapter. Of each batch it takes every n-th row (they are
sorted by length, so the shares are alike), divides by the whole batch's weight, and adds its
gradient to the others': the sum is the gradient that one process would have, and each goes the
same step from it.

The sums go through gloo over the loopback address, also between GPUs: an adapter's gradient is some
50 MB where the base is 16 GB, and one way that works everywhere is one way to test. gloo's group is
made by itself and not as torch's default one, which other libraries would see and act upon.
"""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray

# A process that died is noticed at once (its connection ends); this is for one that hangs. It is
# long because a process may be reading its base while another has come to the first sum.
_SILENT: Final = timedelta(minutes=30)


class Team:
    """One process's place among `size`; `rank` 0 is the trainer itself."""

    def __init__(self, meeting: Path, rank: int, size: int) -> None:
        """Meet the others through the file `meeting`, which all of them name; waits for them.

        Raises:
            RuntimeError: they did not come.
        """
        distributed: Any = torch.distributed
        gloo = distributed.ProcessGroupGloo
        self.rank, self.size = rank, size
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname="127.0.0.1")]
        options._timeout = _SILENT
        store = distributed.FileStore(str(meeting), size)
        self._group: Any = gloo(store, rank, size, options)

    def share(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of a batch that are this process's; perhaps none."""
        return rows[self.rank :: self.size]

    def add_up(
        self, parameters: Sequence[torch.nn.Parameter], loss: float, tokens: int
    ) -> tuple[float, int]:
        """Put the sum of all processes' gradients into each; the sums of loss and tokens.

        Raises:
            RuntimeError: a process is gone.
        """
        flat = torch.cat([_gradient(parameter).reshape(-1) for parameter in parameters])
        moved = flat.to("cpu", torch.float32)
        self._sum(moved)
        place = 0
        for parameter in parameters:
            part = moved[place : place + parameter.numel()].view(parameter.shape)
            parameter.grad = part.to(parameter.device, parameter.dtype, copy=True)
            place += parameter.numel()
        numbers = torch.tensor([loss, tokens], dtype=torch.float64)
        self._sum(numbers)
        return float(numbers[0]), int(numbers[1])

    def agree(self, *, stop: bool) -> bool:
        """What rank 0 says."""
        flag = torch.tensor([int(stop and self.rank == 0)])
        self._sum(flag)
        return bool(flag[0])

    def _sum(self, values: torch.Tensor) -> None:
        self._group.allreduce([values]).wait()


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
