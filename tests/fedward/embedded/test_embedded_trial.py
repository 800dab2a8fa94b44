"""What the demo is there to show: together the hospitals learn what none learns alone."""

import pytest
import torch

from fedward.embedded import trial


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "seed", [1]
)  # 0 is the demo's; `python -m fedward.embedded.trial` has more
def test_federation_beats_every_lone_hospital(seed: int) -> None:
    """From chance, the federated adapter ends 15 points above each hospital on its own steps."""
    tokenizer, base = trial.load_base()
    result = trial.run_trial(tokenizer, base, seed=seed)
    # 120 items of each kind; guessing among four has a standard deviation of 4 points.
    assert 0.12 < result.base.choice < 0.38
    assert result.federated.choice > 0.85
    for score in result.alone:
        assert result.federated.choice >= score.choice + 0.15
        assert result.federated.free >= score.free + 0.15


def test_evaluation_leaves_training_its_gradients() -> None:
    """After an evaluation, a gradient still flows back through a frozen 4-bit layer."""
    _, base = trial.load_base()
    layer = base.model.layers[0].mlp.up_proj
    hidden = torch.ones(1, 3, layer.in_features)
    base.eval()
    with torch.no_grad():
        before = layer(hidden)
    hidden.requires_grad_()
    after = layer(hidden)
    after.sum().backward()
    assert torch.equal(before, after)
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() > 0


def test_average_is_the_mean_of_each_tensor() -> None:
    """FedAvg of the factors is the plain mean, tensor by tensor."""
    adapters = [{"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, 6.0])}]
    assert torch.equal(trial.average(adapters)["a"], torch.tensor([2.0, 4.0]))
