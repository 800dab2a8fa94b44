"""Whom a round asks, and how much each answer counts."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from protocol.errors import ProtocolError
from protocol.study import AggregationSettings


def update_weight(settings: AggregationSettings, *, examples: int, loss: float) -> float:
    """The weight of a site's update.

    `examples` and `loss` (mean training loss, nats a token) are the site's own claims, so both are
    bounded: no site counts for more than `max_examples`, or than a loss of `inverse_loss_floor`.

    Raises:
        ProtocolError: a claim that is no count or no loss.
    """
    if settings.weighting == "equal":
        return 1.0
    if settings.weighting == "examples":
        if examples < 1:
            raise ProtocolError(f"{examples} examples; at least 1 is needed")
        return float(min(examples, settings.max_examples))
    if not (math.isfinite(loss) and loss >= 0):
        raise ProtocolError(f"a training loss of {loss} is no loss")
    return 1.0 / max(loss, settings.inverse_loss_floor)


@dataclass(frozen=True)
class Draw:
    """The sites to ask, in order of name, and how many answers end the round."""

    asked: tuple[str, ...]
    needed: int


def draw_sites(
    online: Iterable[str],
    *,
    fraction: float,
    oversample: float,
    minimum: int,
    seed: int,
    round_number: int,
) -> Draw:
    """Choose whom a round asks: the same arguments always give the same answer.

    ⌈fraction · sites⌉ answers are needed, never fewer than `minimum`; `oversample` of that number
    more are asked, so that the slowest need not be waited for (Bonawitz et al., arXiv 1902.01046,
    section 2.2, ask 130 %). Sites are ranked by a hash of (seed, round, name): who else is online
    does not change a site's rank, and every site is as likely as every other.
    """
    names = sorted(set(online))
    needed = max(minimum, math.ceil(fraction * len(names) - 1e-9))
    asked = min(len(names), math.ceil(needed * (1.0 + oversample) - 1e-9))
    ranked = sorted(names, key=lambda name: _rank(seed, round_number, name))
    return Draw(tuple(sorted(ranked[:asked])), needed)


def _rank(seed: int, round_number: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{round_number}:{name}".encode()).digest()
