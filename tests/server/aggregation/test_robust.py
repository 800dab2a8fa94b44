"""Median, trimmed mean and Krum: their mathematics, and that they withstand what they promise."""

import numpy as np
import pytest
from aggregation_factories import flat, run, study, updates, vector

from server.aggregation import AggregationError, Update
from server.aggregation._robust import sort_rows, squared_distances

N = 300


def test_sort_rows() -> None:
    """The network sorts every number of rows from 1 to 40 as numpy does."""
    rng = np.random.default_rng(0)
    for count in range(1, 41):
        rows = rng.integers(-5, 5, (count, 50)).astype(np.float32)
        assert np.array_equal(sort_rows(rows.copy()), np.sort(rows, axis=0))


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 20])
def test_median(count: int) -> None:
    """The coordinate median is numpy's, for odd and even counts, whatever the weights."""
    given = updates(N, count)
    result = run(study(strategy="median"), flat(N), np.zeros(N, np.float32), given)
    expected = np.median(np.stack([u.delta for u in given]).astype(np.float64), axis=0)
    assert np.allclose(result.adapter, expected, atol=1e-6)


@pytest.mark.parametrize(("count", "fraction", "cut"), [(5, 0.1, 1), (10, 0.25, 3), (7, 0.0, 0)])
def test_trimmed_mean(count: int, fraction: float, cut: int) -> None:
    """The mean of what is left after the largest and smallest values of each coordinate."""
    given = updates(N, count)
    settings = study(strategy="trimmed-mean", trim_fraction=fraction, minimum_sites=count)
    result = run(settings, flat(N), np.zeros(N, np.float32), given)
    ordered = np.sort(np.stack([u.delta for u in given]).astype(np.float64), axis=0)
    assert np.allclose(result.adapter, ordered[cut : count - cut].mean(axis=0), atol=1e-6)
    assert result.info["trimmed"] == cut


def plain_krum(deltas: list[np.ndarray], f: int, m: int) -> np.ndarray:
    """Blanchard et al., section 4, as loops."""
    scores = []
    for i, x in enumerate(deltas):
        others = sorted(
            float(np.sum((x.astype(np.float64) - y) ** 2)) for j, y in enumerate(deltas) if j != i
        )
        scores.append(sum(others[: len(deltas) - f - 2]))
    chosen = sorted(range(len(deltas)), key=lambda i: (scores[i], i))[:m]
    return np.mean([deltas[i].astype(np.float64) for i in chosen], axis=0)


@pytest.mark.parametrize(
    ("strategy", "keep", "m"), [("krum", 0, 1), ("multi-krum", 0, 6), ("multi-krum", 3, 3)]
)
def test_krum(strategy: str, keep: int, m: int) -> None:
    """Krum and multi-Krum choose what a plain loop over the definition chooses."""
    for seed in range(5):
        given = updates(N, 8, seed)
        settings = study(strategy=strategy, byzantine_sites=2, krum_keep=keep, minimum_sites=8)
        result = run(settings, flat(N), np.zeros(N, np.float32), given)
        expected = plain_krum([u.delta for u in given], 2, m)
        assert np.allclose(result.adapter, expected, atol=1e-6)
        assert result.info["kept"] == m


def test_distances_of_near_updates() -> None:
    """Updates that share a large part keep the distances of their small differences."""
    shared = vector(N, 0, 1e3)
    near = [shared + vector(N, k, 0.1) for k in range(1, 5)]
    plain = [[np.sum((a.astype(np.float64) - b) ** 2) for b in near] for a in near]
    assert np.allclose(squared_distances(near), plain, rtol=1e-6)


@pytest.mark.parametrize("strategy", ["median", "trimmed-mean", "krum", "multi-krum"])
@pytest.mark.parametrize("attack", ["huge", "flipped", "together"])
def test_withstands(strategy: str, attack: str) -> None:
    """Two hostile sites of nine, with the largest weights, hardly move the result; FedAvg's is
    ruined."""
    truth = vector(N, 1)
    honest = [Update(f"h{k}", 1.0, truth + vector(N, 10 + k, 0.3)) for k in range(7)]
    evil = {
        "huge": [vector(N, 50 + k, 1e6) for k in range(2)],
        "flipped": [-20 * truth] * 2,
        "together": [truth + np.float32(100)] * 2,
    }[attack]
    given = honest + [Update(f"e{k}", 1e5, delta) for k, delta in enumerate(evil)]
    settings = study(strategy=strategy, byzantine_sites=2, trim_fraction=0.23, minimum_sites=9)
    zero = np.zeros(N, np.float32)

    def distance(adapter: np.ndarray) -> float:
        return float(np.linalg.norm(adapter - truth) / np.linalg.norm(truth))

    assert distance(run(settings, flat(N), zero, given).adapter) < 0.4
    assert distance(run(study(), flat(N), zero, given).adapter) > 5


def test_order_of_arrival() -> None:
    """The result does not depend on who answered first."""
    given = updates(N, 7)
    for strategy in ("median", "trimmed-mean", "krum", "multi-krum"):
        settings = study(strategy=strategy, minimum_sites=7)
        one = run(settings, flat(N), vector(N, 0), given).adapter
        two = run(settings, flat(N), vector(N, 0), given[::-1]).adapter
        assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ("strategy", "count"), [("krum", 4), ("multi-krum", 4), ("trimmed-mean", 2)]
)
def test_too_few(strategy: str, count: int) -> None:
    """Fewer updates than the method's promise needs fail the round with a sentence."""
    with pytest.raises(AggregationError, match="need"):
        run(study(strategy=strategy, minimum_sites=5), flat(N), vector(N, 0), updates(N, count))
