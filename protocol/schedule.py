"""The learning rate over the rounds, spelled once.

The aggregator sends it with each request, and a site that trains alone for comparison follows the
same one.
"""

import math
from collections.abc import Sequence
from typing import Final

from .study import TrainingSettings

# A loss counts as better when it is lower by this share of the best (torch's ReduceLROnPlateau).
_BETTER: Final = 1e-4


def learning_rate(
    training: TrainingSettings, round_number: int, rounds: int, losses: Sequence[float] = ()
) -> float:
    """The rate of round `round_number` (from 1) of `rounds`; it is constant inside a round.

    Cosine (arXiv 1608.03983, without restarts) goes from `learning_rate` in round 1 to
    `learning_rate_end` in the last; linear does so in equal steps. A study of one round has the
    former. FlowerTune's cosine begins one step further down, and a study of one round would train
    at the last rate alone.

    Plateau follows `losses`: the held-out losses over all sites that are known before the round,
    oldest first. A site that trains alone knows none and keeps `learning_rate`.
    """
    peak, end = training.learning_rate, training.last_rate
    if training.schedule == "plateau":
        return max(end, peak * training.plateau_factor ** plateaus(losses, training))
    if training.schedule == "constant" or rounds <= 1:
        return peak
    progress = min(max((round_number - 1) / (rounds - 1), 0.0), 1.0)
    if training.schedule == "linear":
        return peak + (end - peak) * progress
    return end + (peak - end) * (1 + math.cos(math.pi * progress)) / 2


def plateaus(losses: Sequence[float], training: TrainingSettings) -> int:
    """How often `plateau_patience` losses in a row were no better than the best before them.

    A loss that is not finite is no better; after a plateau the count begins again.
    """
    best, waited, found = math.inf, 0, 0
    for loss in losses:
        if math.isfinite(loss) and (math.isinf(best) or loss < best - _BETTER * abs(best)):
            best, waited = loss, 0
            continue
        waited += 1
        if waited == training.plateau_patience:
            found, waited = found + 1, 0
    return found
