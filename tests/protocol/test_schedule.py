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


def test_the_last_round_is_not_wasted() -> None:
    """Without learning_rate_end the last round trains at a tenth of the peak, not at nothing."""
    assert rates(4, schedule="cosine")[-1] == pytest.approx(0.1)
    assert rates(4, schedule="linear")[-1] == pytest.approx(0.1)
    assert rates(4, schedule="linear", learning_rate_end=0.0)[-1] == 0.0


def test_cosine_is_flowertunes_less_one_step() -> None:
    """FlowerTune's rate of round t of T is cosine's at t/T; ours begins at the peak, and the two
    meet in the last round and are never further apart than one step of theirs."""
    top, low, rounds = 5e-5, 1e-6, 200
    ours = rates(rounds, schedule="cosine", learning_rate=top, learning_rate_end=low)
    theirs = [
        low + 0.5 * (top - low) * (1 + math.cos(math.pi * number / rounds))
        for number in range(1, rounds + 1)
    ]
    assert ours[-1] == pytest.approx(theirs[-1]) == pytest.approx(low)
    assert ours[0] == top
    step = (top - low) * math.pi / 2 / rounds
    assert all(0 <= a - b + 1e-12 <= step for a, b in zip(ours, theirs, strict=True))


def plateau(losses: list[float], **settings: object) -> float:
    """The rate after `losses`."""
    training = TrainingSettings.model_validate(
        {"learning_rate": 1.0, "schedule": "plateau", "plateau_patience": 2} | settings
    )
    return learning_rate(training, len(losses) + 1, 100, losses)


def test_plateau_waits_for_the_loss_to_stop_falling() -> None:
    """A falling loss keeps the rate; two losses in a row that are no better halve it, each time."""
    assert plateau([]) == 1.0
    assert plateau([3.0, 2.0, 1.0]) == 1.0
    assert plateau([3.0, 3.0]) == 1.0
    assert plateau([3.0, 3.0, 3.1]) == 0.5
    assert plateau([3.0, 3.0, 3.1, 2.0, 2.0]) == 0.5
    assert plateau([3.0, 3.0, 3.1, 2.0, 2.0, 2.0]) == 0.25
    assert plateau([3.0] * 3, plateau_factor=0.1) == pytest.approx(0.1)


def test_plateau_has_a_floor_and_forgives_no_broken_loss() -> None:
    """The rate never falls under learning_rate_end; NaN and a crumb of progress are no progress."""
    assert plateau([1.0] * 50) == pytest.approx(0.1)
    assert plateau([1.0] * 50, learning_rate_end=0.01) == pytest.approx(0.01)
    assert plateau([1.0, math.nan, 1.0 - 1e-6]) == 0.5
    assert plateau([math.nan, math.nan]) == 0.5
    assert plateau([math.nan, 2.0, 1.0]) == 1.0


def test_plateau_is_torchs() -> None:
    """The same rates as torch's own scheduler on a noisy loss (its patience is one less)."""
    import random

    import torch

    draw = random.Random(3)
    losses = [2.0 / (1 + index / 9) + draw.uniform(-0.15, 0.15) for index in range(60)]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=1, min_lr=0.1
    )
    for index, loss in enumerate(losses):
        theirs.step(loss)
        assert plateau(losses[: index + 1]) == pytest.approx(optimizer.param_groups[0]["lr"])
