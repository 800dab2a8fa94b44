"""Error feedback: what is left out now is sent later."""

import numpy as np
import pytest

from protocol.codec import ErrorFeedback, get_codec
from protocol.errors import ProtocolError
from protocol.manifest import AdapterManifest, TensorSpec

NUMEL = 1000
MANIFEST = AdapterManifest(tensors=(TensorSpec(name="w", shape=(NUMEL,)),))


def test_nothing_is_lost() -> None:
    """All that was sent and the residual add up to all that was meant."""
    rng = np.random.default_rng(0)
    codec = get_codec("topk-0.1")
    feedback = ErrorFeedback.new(NUMEL)
    meant, sent = np.zeros(NUMEL), np.zeros(NUMEL)
    for _ in range(30):
        delta = rng.standard_normal(NUMEL).astype(np.float32)
        wanted = feedback.add_to(delta)
        decoded = codec.decode(codec.encode(wanted, MANIFEST), NUMEL)
        feedback = feedback.after(wanted, decoded)
        meant += delta
        sent += decoded
        assert np.allclose(meant, sent + feedback.residual, atol=1e-3)


@pytest.mark.parametrize(("with_feedback", "reaches"), [(True, True), (False, False)])
def test_descent_needs_it(with_feedback: bool, reaches: bool) -> None:
    """Two sites whose large gradients cancel reach the joint optimum with feedback, not without.

    Site k minimises |x - t_k|^2 / 2; the t_k differ much in the first tenth, where they cancel,
    and agree on small values elsewhere, which top 10 % alone never sends.
    """
    rng = np.random.default_rng(1)
    shared = rng.standard_normal(NUMEL).astype(np.float32)
    apart = np.zeros(NUMEL, np.float32)
    apart[:100] = 5.0
    targets = [shared + apart, shared - apart]
    codec = get_codec("topk-0.1")
    x = np.zeros(NUMEL, np.float32)
    held = [ErrorFeedback.new(NUMEL) for _ in targets]
    for _ in range(600):
        steps = []
        for site, target in enumerate(targets):
            delta = np.float32(0.02) * (target - x)
            wanted = held[site].add_to(delta) if with_feedback else delta
            decoded = codec.decode(codec.encode(wanted, MANIFEST), NUMEL)
            held[site] = held[site].after(wanted, decoded)
            steps.append(decoded)
        x = x + (steps[0] + steps[1]) / np.float32(2)
    distance = np.linalg.norm((x - shared)[100:]) / np.linalg.norm(shared[100:])
    assert (distance < 0.2) == reaches


def test_lengths_must_fit() -> None:
    """A residual of another adapter is refused."""
    with pytest.raises(ProtocolError):
        ErrorFeedback.new(3).add_to(np.zeros(4, np.float32))
