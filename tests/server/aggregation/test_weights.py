"""Weights, and whom a round asks."""

from collections import Counter

import pytest
from aggregation_factories import study

from protocol.errors import ProtocolError
from server.aggregation import draw_sites, update_weight

SITES = [f"site-{k:02}" for k in range(20)]


@pytest.mark.parametrize(
    ("weighting", "examples", "loss", "weight"),
    [
        ("examples", 500, 1.0, 500.0),
        ("examples", 10**9, 1.0, 1000.0),
        ("equal", 500, 1.0, 1.0),
        ("inverse-loss", 500, 2.0, 0.5),
        ("inverse-loss", 500, 0.0, 4.0),
    ],
)
def test_weight(weighting: str, examples: int, loss: float, weight: float) -> None:
    """Each weighting is what its name says, and no claim takes a site beyond the cap."""
    settings = study(weighting=weighting, max_examples=1000, inverse_loss_floor=0.25).aggregation
    assert update_weight(settings, examples=examples, loss=loss) == weight


@pytest.mark.parametrize(
    ("weighting", "examples", "loss"),
    [
        ("examples", 0, 1.0),
        ("inverse-loss", 5, float("nan")),
        ("inverse-loss", 5, float("inf")),
        ("inverse-loss", 5, -1.0),
    ],
)
def test_weight_refuses(weighting: str, examples: int, loss: float) -> None:
    """A claim that is no count or no loss is refused."""
    with pytest.raises(ProtocolError):
        update_weight(study(weighting=weighting).aggregation, examples=examples, loss=loss)


def draw(online: list[str] = SITES, **change: object):
    how = {"fraction": 0.2, "oversample": 0.0, "minimum": 2, "seed": 1, "round_number": 1}
    return draw_sites(online, **(how | change))


def test_draw_is_a_function_of_its_arguments() -> None:
    """The same seed and round ask the same sites in any order of listing; another round others."""
    assert draw() == draw(SITES[::-1])
    assert len({draw(round_number=r).asked for r in range(20)}) > 15
    assert draw(seed=2) != draw()


@pytest.mark.parametrize(
    ("fraction", "oversample", "minimum", "needed", "asked"),
    [
        (0.2, 0.0, 2, 4, 4),
        (0.2, 0.3, 2, 4, 6),
        (0.1, 0.5, 5, 5, 8),
        (1.0, 0.3, 2, 20, 20),
        (0.15, 0.0, 1, 3, 3),
        (0.01, 0.0, 1, 1, 1),
    ],
)
def test_counts(fraction: float, oversample: float, minimum: int, needed: int, asked: int) -> None:
    """The share is rounded up and at least the minimum; over-sampling is on top, at most all."""
    result = draw(fraction=fraction, oversample=oversample, minimum=minimum)
    assert (result.needed, len(result.asked)) == (needed, asked)
    assert set(result.asked) <= set(SITES)


def test_fewer_online_than_needed() -> None:
    """With fewer sites online than the minimum all are asked, and the minimum still stands."""
    result = draw(SITES[:3], minimum=5)
    assert result.asked == tuple(SITES[:3])
    assert result.needed == 5


def test_every_site_gets_its_turn() -> None:
    """Over a thousand rounds each of twenty sites is asked about as often as every other."""
    asked = Counter(site for r in range(1000) for site in draw(round_number=r).asked)
    assert min(asked.values()) > 150
    assert max(asked.values()) < 250


def test_others_do_not_change_a_sites_rank() -> None:
    """A site that goes offline is replaced by one other; the rest stay."""
    before = draw()
    online = [site for site in SITES if site != before.asked[0]]
    assert len(set(before.asked) & set(draw(online).asked)) == 3
