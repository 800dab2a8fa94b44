"""The learning rate over the rounds, spelled once.

The aggregator sends it with each request, and a site that trains alone for comparison follows the
same one.
"""

import math

from .study import TrainingSettings


def learning_rate(training: TrainingSettings, round_number: int, rounds: int) -> float:
    """The rate of round `round_number` (from 1) of `rounds`; it is constant inside a round.

    Cosine (arXiv 1608.03983, without restarts) goes from `learning_rate` in round 1 to
    `learning_rate_end` in the last; linear does so in equal steps. A study of one round has the
    former.
    """
    peak, end = training.learning_rate, training.learning_rate_end
    if training.schedule == "constant" or rounds <= 1:
        return peak
    progress = min(max((round_number - 1) / (rounds - 1), 0.0), 1.0)
    if training.schedule == "linear":
        return peak + (end - peak) * progress
    return end + (peak - end) * (1 + math.cos(math.pi * progress)) / 2
