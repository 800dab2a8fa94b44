"""The server's own steps against their formulas, over several rounds and a checkpoint."""

import numpy as np
import pytest
from aggregation_factories import flat, lora, run, study, vector

from server.aggregation import ServerState, Update

N = 500


def reference_step(name: str, x, delta, m, v, *, lr, beta, b1, b2, tau):
    """Hsu et al. (arXiv 1909.06335) and Reddi et al. (arXiv 2003.00295, algorithm 2), plainly."""
    if name == "fedavgm":
        m = beta * m + delta
        return x + lr * m, m, v
    m = b1 * m + (1 - b1) * delta
    if name == "fedadagrad":
        v = v + delta**2
    elif name == "fedyogi":
        v = v - (1 - b2) * delta**2 * np.sign(v - delta**2)
    else:
        v = b2 * v + (1 - b2) * delta**2
    return x + lr * m / (np.sqrt(v) + tau), m, v


@pytest.mark.parametrize("name", ["fedavgm", "fedadagrad", "fedyogi", "fedadam"])
def test_against_the_formula(name: str) -> None:
    """Six rounds, with the state through bytes after each, follow the paper's formula."""
    settings = study(strategy=name, momentum=0.7, beta1=0.8, beta2=0.95, tau=0.01)
    lr = settings.aggregation.step
    assert lr == (1.0 if name == "fedavgm" else 1e-3)
    x = vector(N, 0)
    exact, m, v = x.astype(np.float64), np.zeros(N), np.full(N, 0.01**2)
    state = ServerState()
    for r in range(1, 7):
        deltas = [vector(N, 10 * r + k, 0.1) for k in range(3)]
        weights = [1.0, 2.0, 5.0]
        mean = np.average(np.stack(deltas).astype(np.float64), axis=0, weights=weights)
        exact, m, v = reference_step(
            name, exact, mean, m, v, lr=lr, beta=0.7, b1=0.8, b2=0.95, tau=0.01
        )
        given = [Update(f"s{k}", weights[k], deltas[k]) for k in range(3)]
        result = run(settings, flat(N), x, given, round_number=r, state=state)
        x, state = result.adapter, ServerState.from_bytes(result.state.to_bytes())
        assert np.allclose(x, exact, rtol=0, atol=3e-6)


@pytest.mark.parametrize("name", ["fedavgm", "fedadagrad", "fedyogi", "fedadam"])
def test_rolora_moves_one_factor(name: str) -> None:
    """In a round where A is frozen neither A nor its momentum moves, whatever came before."""
    manifest = lora()
    settings = study(strategy=name, lora="rolora")
    x, state = vector(manifest.numel, 0), ServerState()
    frozen = {1: "lora_A", 0: "lora_B"}
    for r in range(1, 5):
        given = [Update(f"s{k}", 1.0, vector(manifest.numel, 10 * r + k)) for k in range(2)]
        result = run(settings, manifest, x, given, round_number=r, state=state)
        for tensor, where in manifest.slices():
            still = frozen[r % 2] in tensor.name
            assert np.array_equal(result.adapter[where], x[where]) == still
            if r > 1:
                assert (
                    np.array_equal(result.state.vectors["m"][where], state.vectors["m"][where])
                    == still
                )
        x, state = result.adapter, result.state


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadagrad", "fedyogi", "fedadam"])
def test_reaches_the_optimum(name: str) -> None:
    """On sites with their own quadratics each algorithm comes near the joint optimum."""
    rng = np.random.default_rng(4)
    targets = rng.standard_normal((4, 20))
    settings = study(
        strategy=name, server_learning_rate={"fedavg": 1.0, "fedavgm": 0.5}.get(name, 0.1)
    )
    x, state = np.zeros(20, np.float32), ServerState()
    start = np.linalg.norm(x - targets.mean(axis=0))
    for r in range(1, 201):
        given = [
            Update(f"s{k}", 1.0, (0.2 * (t - x)).astype(np.float32)) for k, t in enumerate(targets)
        ]
        result = run(settings, flat(20), x, given, round_number=r, state=state)
        x, state = result.adapter, result.state
    assert np.linalg.norm(x - targets.mean(axis=0)) < 0.02 * start
