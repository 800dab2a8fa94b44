"""Which rows a round trains on, and every other random draw of a site.

Epoch e is a permutation of the rows drawn from (seed, site, e); round r goes on where round r - 1
ended. All of it follows from (seed, site, round), so nothing is remembered: a round that is run
again after a crash draws the same rows, and no row comes twice before every row came once.
(FlowerTune's default draws the same 160 rows in every round.)
"""

import hashlib

import numpy as np
from numpy.typing import NDArray


def derive(*parts: object) -> int:
    """A 63-bit seed from any printable parts; unlike `hash`, the same in every process."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rows_of_round(
    count: int, *, seed: int, site: str, round_number: int, stride: int, draws: int
) -> NDArray[np.int64]:
    """Row indices of one round, in order: int64 (draws,).

    Args:
        count: rows the site has.
        round_number: from 1.
        stride: rows the study plans for a round (steps times batch size): round r begins at
            (r - 1) * stride in the endless sequence of permutations.
        draws: rows this round uses; at most `stride`, or the next round repeats some.
    """
    start = (round_number - 1) * stride
    position = np.arange(start, start + draws, dtype=np.int64)
    epochs = position // count
    chosen = np.empty(draws, dtype=np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng(derive("rows", seed, site, int(epoch))).permutation(count)
        inside = epochs == epoch
        chosen[inside] = order[position[inside] % count]
    return chosen


def subset(count: int, limit: int, *, seed: int) -> NDArray[np.int64]:
    """At most `limit` of `count` rows, ascending, the same for every adapter: int64 (k,)."""
    if count <= limit:
        return np.arange(count, dtype=np.int64)
    order = np.random.default_rng(derive("heldout", seed)).permutation(count)
    return np.sort(order[:limit])
