"""A part of an adapter as an adapter of its own."""

import numpy as np
import pytest

from protocol.codec import narrow, trained_part, widen, with_rank
from protocol.errors import ProtocolError
from protocol.manifest import AdapterManifest, TensorSpec


def adapter(rank: int = 4) -> AdapterManifest:
    return AdapterManifest(
        tensors=(
            TensorSpec(name="m.q.lora_A.weight", shape=(rank, 6)),
            TensorSpec(name="m.q.lora_B.weight", shape=(5, rank)),
            TensorSpec(name="m.score.weight", shape=(3,)),
        )
    )


def test_one_factor() -> None:
    """The part that trains with B alone is B and what is no factor; it returns to its place."""
    part = trained_part(adapter(), {"B"})
    assert [tensor.name for tensor in part.tensors] == ["m.q.lora_B.weight", "m.score.weight"]
    vector = np.arange(adapter().numel, dtype=np.float32)
    values = narrow(vector, adapter(), part)
    assert values.tolist() == vector[24:].tolist()
    assert widen(values, part, adapter()).tolist() == [0.0] * 24 + vector[24:].tolist()
    assert trained_part(adapter(), {"A", "B"}) == adapter()


def test_smaller_rank() -> None:
    """Rank 2 of 4 is the first two rows of A and the first two columns of B."""
    part = with_rank(adapter(4), 2)
    assert part == adapter(2)
    vector = np.arange(adapter().numel, dtype=np.float32)
    a, b = vector[:24].reshape(4, 6), vector[24:44].reshape(5, 4)
    values = narrow(vector, adapter(), part)
    assert values.tolist() == [*a[:2].ravel(), *b[:, :2].ravel(), *vector[44:]]
    wide = widen(values, part, adapter())
    wide_a, wide_b = wide[:24].reshape(4, 6), wide[24:44].reshape(5, 4)
    assert np.array_equal(wide_b @ wide_a, b[:, :2] @ a[:2])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("m.v.lora_A.weight", (4, 6)),  # no such tensor
        ("m.q.lora_A.weight", (5, 6)),  # a larger rank
        ("m.q.lora_A.weight", (4, 5)),  # another width
        ("m.q.lora_B.weight", (4, 4)),  # another height
        ("m.score.weight", (2,)),  # no factor, so no rank
        ("m.score.weight", (3, 1)),
    ],
)
def test_no_part(name: str, shape: tuple[int, ...]) -> None:
    """A layout that is no part of the study's is refused."""
    part = AdapterManifest(tensors=(TensorSpec(name=name, shape=shape),))
    with pytest.raises(ProtocolError):
        widen(np.zeros(part.numel, np.float32), part, adapter())


def test_nothing_left() -> None:
    """An adapter of A alone has no part for B."""
    only_a = AdapterManifest(tensors=adapter().tensors[:1])
    with pytest.raises(ProtocolError, match="no factor B"):
        trained_part(only_a, {"B"})
