"""SCAFFOLD: the server's half against its formula, and the whole of it on a convex problem.

The problem: site k minimises (x - t_k)ᵀ H_k (x - t_k) / 2 with its own H_k and t_k, so local
optima are far apart and FedAvg with many local steps settles beside the joint optimum.
"""

import numpy as np
import pytest
from aggregation_factories import flat, run, study, updates, vector

from protocol.codec import join_control, split_control, with_control
from protocol.errors import ProtocolError
from server.aggregation import ServerState, Update

N, SITES, STEPS = 10, 5, 20


def test_server_half() -> None:
    """x moves by the weighted mean, c by the sum of the changes over all N sites of the study."""
    given = [
        Update(u.site, u.weight, u.delta, control=vector(N, 7 + k))
        for k, u in enumerate(updates(N, 3))
    ]
    reference, c = vector(N, 0), vector(N, 1)
    state = ServerState("scaffold", {"c": c})
    result = run(study(strategy="scaffold"), flat(N), reference, given, state=state, total_sites=6)
    mean = np.average([u.delta for u in given], axis=0, weights=[u.weight for u in given])
    assert np.allclose(result.adapter, reference + mean, atol=1e-6)
    expected = c + np.sum([u.control for u in given], axis=0) / 6
    assert np.allclose(result.state.vectors["c"], expected, atol=1e-6)


def test_control_is_needed() -> None:
    """An update without its control variate, or with one that is not finite, is refused."""
    delta = vector(N, 0)
    for control in (None, delta[:-1], np.full(N, np.nan, np.float32)):
        with pytest.raises(ProtocolError, match="control"):
            run(
                study(strategy="scaffold"),
                flat(N),
                delta,
                [Update("s", 1.0, delta, control=control)],
            )


def test_both_halves_travel_as_one() -> None:
    """An adapter and its control variate are one vector on the wire, with a layout of its own."""
    manifest = flat(N)
    assert with_control(manifest).numel == 2 * N
    assert with_control(manifest).digest != manifest.digest
    one, two = split_control(join_control(vector(N, 0), vector(N, 1)))
    assert np.array_equal(one, vector(N, 0))
    assert np.array_equal(two, vector(N, 1))


class Problem:
    """The sites' quadratics and their joint optimum."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        factors = rng.standard_normal((SITES, N, N)) / np.sqrt(N)
        self.hessians = np.einsum("kij,klj->kil", factors, factors) + 0.1 * np.eye(N)
        self.targets = 5 * rng.standard_normal((SITES, N))
        pulls = np.einsum("kij,kj->i", self.hessians, self.targets)
        self.optimum = np.linalg.solve(self.hessians.sum(axis=0), pulls)

    def gradient(self, k: int, x: np.ndarray) -> np.ndarray:
        return self.hessians[k] @ (x - self.targets[k])

    def distance(self, x: np.ndarray) -> float:
        return float(np.linalg.norm(x - self.optimum) / np.linalg.norm(self.optimum))


def train(
    problem: Problem, k: int, x: np.ndarray, c: np.ndarray, c_k: np.ndarray, lr: float, adam: bool
):
    """A trainer's round as `server.aggregation._scaffold` tells it: the delta and the new c_k."""
    y, total = x.astype(np.float64), np.zeros(N)
    m, v = np.zeros(N), np.zeros(N)
    for t in range(1, STEPS + 1):
        g = problem.gradient(k, y)
        total += g
        g = g - c_k + c
        if adam:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            g = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        y -= lr * g
    return (y - x).astype(np.float32), (total / STEPS).astype(np.float32)


def federate(
    problem: Problem, strategy: str, *, rounds: int, lr: float, adam: bool, asked: int
) -> float:
    """The distance to the joint optimum after `rounds`."""
    rng = np.random.default_rng(0)
    x, state = np.zeros(N, np.float32), ServerState()
    held = np.zeros((SITES, N), np.float32)
    for r in range(1, rounds + 1):
        rate = lr * (1 + np.cos(np.pi * r / rounds)) / 2 if adam else lr
        c = state.vector("c", N)
        given = []
        for k in rng.permutation(SITES)[:asked]:
            if strategy == "scaffold":
                delta, new = train(problem, k, x, c, held[k], rate, adam)
                given.append(Update(f"s{k}", 1.0, delta, control=new - held[k]))
                held[k] = new
            else:
                zero = np.zeros(N)
                given.append(Update(f"s{k}", 1.0, train(problem, k, x, zero, zero, rate, adam)[0]))
        result = run(
            study(strategy=strategy),
            flat(N),
            x,
            given,
            round_number=r,
            state=state,
            total_sites=SITES,
        )
        x, state = result.adapter, result.state
    return problem.distance(x)


@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
@pytest.mark.parametrize("asked", [SITES, 2], ids=["all sites", "two sites a round"])
def test_beats_fedavg_under_heterogeneity(adam: bool, asked: int) -> None:
    """With strong heterogeneity and many local steps FedAvg settles at 20 % or more of
    the way from the joint optimum and SCAFFOLD reaches it, under SGD and under Adam."""
    for seed in range(3):
        problem = Problem(seed)
        how = {"rounds": 300, "lr": 0.05, "adam": adam, "asked": asked}
        plain = federate(problem, "fedavg", **how)
        corrected = federate(problem, "scaffold", **how)
        assert plain > 0.2
        assert corrected < 1e-3


def test_mean_gradient_is_option_two() -> None:
    """Under SGD the mean raw gradient is the paper's option II to the last digits."""
    problem, lr = Problem(0), 0.03
    x, c, c_k = vector(N, 1), vector(N, 2), vector(N, 3)
    delta, new = train(problem, 0, x, c, c_k, lr, adam=False)
    assert np.allclose(new, c_k - c - delta / (STEPS * lr), atol=1e-5)
