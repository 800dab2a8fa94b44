"""What the server does with the combined update: a step of its own.

Δ is the combined update of the round, x the adapter the round began with, η the server learning
rate. Nothing here corrects a bias: none of the papers does.

    fedavg, fedprox, robust   x + η Δ
    fedavgm                   m = β m + Δ;               x + η m
    fedadagrad                v = v + Δ²
    fedyogi                   v = v - (1 - β2) Δ² sign(v - Δ²)
    fedadam                   v = β2 v + (1 - β2) Δ²
      all three               m = β1 m + (1 - β1) Δ;     x + η m / (√v + τ)
                              m begins at 0, v at τ²

FedAvgM: Hsu et al., arXiv 1909.06335, section 4. The adaptive three: Reddi et al., arXiv
2003.00295, algorithm 2.

`m` and `v` are kept as float32 [n]; the arithmetic is float64, a megabyte at a time.
"""

from collections.abc import Callable, Sequence

import numpy as np

from protocol.study import AggregationSettings

from ._state import ServerState
from ._types import CHUNK, Sum, Vector

_SECOND_MOMENT: dict[str, Callable[[Sum, Sum, float], Sum]] = {
    "fedadagrad": lambda v, square, _: v + square,
    "fedyogi": lambda v, square, beta: v - (1 - beta) * square * np.sign(v - square),
    "fedadam": lambda v, square, beta: beta * v + (1 - beta) * square,
}


def step(
    settings: AggregationSettings,
    reference: Vector,
    delta: Vector,
    state: ServerState,
    *,
    frozen: Sequence[slice] = (),
) -> ServerState:
    """Turn `delta` (float32 [n]) into the next adapter, in place; return the state after it.

    In place because memory that was never touched costs more than the arithmetic: the kernel hands
    it out a page at a time. Values in `frozen` stay as they are, and so do their moments: momentum
    must not move the LoRA factor that did not train.
    """
    if settings.strategy == "fedavgm":
        after = _momentum(settings, reference, delta, state)
    elif settings.strategy in _SECOND_MOMENT:
        after = _adaptive(settings, reference, delta, state)
    else:
        after = state
        if settings.step != 1.0:
            delta *= np.float32(settings.step)
        delta += reference
    for part in frozen:
        delta[part] = reference[part]
    for name, vector in after.vectors.items() if frozen else ():
        before = state.vector(name, delta.size, fill=_initial(settings, name))
        for part in frozen:
            vector[part] = before[part]
    return after


def _momentum(
    settings: AggregationSettings, reference: Vector, delta: Vector, state: ServerState
) -> ServerState:
    momentum = state.vector("m", delta.size).copy()
    for part in _chunks(delta.size):
        m = settings.momentum * momentum[part].astype(np.float64) + delta[part]
        momentum[part] = m
        delta[part] = reference[part] + settings.step * m
    return ServerState(settings.strategy, {"m": momentum})


def _adaptive(
    settings: AggregationSettings, reference: Vector, delta: Vector, state: ServerState
) -> ServerState:
    first = state.vector("m", delta.size).copy()
    second = state.vector("v", delta.size, fill=_initial(settings, "v")).copy()
    rule = _SECOND_MOMENT[settings.strategy]
    for part in _chunks(delta.size):
        d = delta[part].astype(np.float64)
        m = settings.beta1 * first[part].astype(np.float64) + (1 - settings.beta1) * d
        v = rule(second[part].astype(np.float64), d * d, settings.beta2)
        first[part], second[part] = m, v
        delta[part] = reference[part] + settings.step * m / (np.sqrt(v) + settings.tau)
    return ServerState(settings.strategy, {"m": first, "v": second})


def _initial(settings: AggregationSettings, name: str) -> float:
    return settings.tau**2 if name == "v" else 0.0


def _chunks(size: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, size)) for start in range(0, size, CHUNK)]
