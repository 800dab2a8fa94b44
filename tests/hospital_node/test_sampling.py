"""Each round draws new rows, and a resumed round the same ones."""

import numpy as np

from hospital_node.trainer.sampling import derive, rows_of_round, subset


def draw(round_number: int, *, count: int = 100, site: str = "north", seed: int = 1) -> list[int]:
    """Rows of a round of 3 steps of 10."""
    return rows_of_round(
        count, seed=seed, site=site, round_number=round_number, stride=30, draws=30
    ).tolist()


def test_no_row_comes_twice_before_every_row_came_once() -> None:
    """Ten rounds of 30 rows from 100 are three whole passes, each with every row once."""
    drawn = [row for number in range(1, 11) for row in draw(number)]
    for epoch in range(3):
        assert sorted(drawn[epoch * 100 : (epoch + 1) * 100]) == list(range(100))
    assert drawn[:100] != drawn[100:200], "each pass has an order of its own"


def test_rounds_differ_and_repeat_exactly() -> None:
    """Round 1 and round 2 share no row; round 2 asked again gives round 2."""
    assert not set(draw(1)) & set(draw(2))
    assert draw(2) == draw(2)


def test_sites_and_seeds_draw_differently() -> None:
    """Another site or study does not follow the same order."""
    assert len({tuple(draw(1, site=site, seed=seed)) for site in "ab" for seed in (1, 2)}) == 4


def test_fewer_rows_than_a_round_needs() -> None:
    """A site with 7 rows goes round them evenly."""
    drawn = draw(1, count=7)
    assert np.bincount(drawn, minlength=7).min() >= 4


def test_a_smaller_share_leaves_the_rest_out_and_does_not_shift_the_next_round() -> None:
    """A slow site that does half of the steps begins the next round where it would have anyway."""
    half = rows_of_round(100, seed=1, site="north", round_number=1, stride=30, draws=15).tolist()
    assert half == draw(1)[:15]


def test_the_evaluated_subset_is_fixed() -> None:
    """The same rows are evaluated for every adapter, all of them where there are few."""
    chosen = subset(100, 10, seed=3)
    assert len(set(chosen.tolist())) == 10
    assert chosen.tolist() == subset(100, 10, seed=3).tolist() == sorted(chosen.tolist())
    assert subset(5, 10, seed=3).tolist() == [0, 1, 2, 3, 4]


def test_seeds_are_the_same_in_every_process() -> None:
    """A derived seed is a fixed number, not this process's hash."""
    assert derive("rows", 1, "north", 0) == 2051464040624918304
