"""The learning rate over the rounds."""

import math

import pytest

from protocol.schedule import learning_rate
from protocol.study import TrainingSettings


def rates(rounds: int, **settings: object) -> list[float]:
    """The rate of each round."""
    training = TrainingSettings.model_validate({"learning_rate": 1.0} | settings)
    return [learning_rate(training, number, rounds) for number in range(1, rounds + 1)]


def test_constant_is_constant() -> None:
    """Every round has learning_rate."""
    assert rates(3) == [1.0, 1.0, 1.0]


def test_cosine_goes_from_peak_to_end() -> None:
    """The first round has learning_rate, the last learning_rate_end, half way is half way."""
    found = rates(5, schedule="cosine", learning_rate_end=0.2)
    expected = [0.2 + 0.4 * (1 + math.cos(math.pi * step / 4)) for step in range(5)]
    assert found == pytest.approx(expected)
    assert (found[0], found[-1]) == pytest.approx((1.0, 0.2))


def test_linear_goes_in_equal_steps() -> None:
    """From learning_rate to learning_rate_end, the same amount less each round."""
    assert rates(5, schedule="linear", learning_rate_end=0.2) == pytest.approx(
        [1.0, 0.8, 0.6, 0.4, 0.2]
    )


def test_one_round_has_the_peak() -> None:
    """A study of one round is not trained at the last round's rate."""
    assert rates(1, schedule="cosine") == [1.0]
