"""The down-link as a chain of changes."""

import numpy as np
import pytest

from protocol.codec import DeltaChain, decode_payload, follow
from protocol.errors import ProtocolError
from protocol.manifest import AdapterManifest, TensorSpec

NUMEL = 1000
MANIFEST = AdapterManifest(tensors=(TensorSpec(name="w", shape=(NUMEL,)),))


def walk(rounds: int, codec: str, *, feedback: bool = True):
    """An adapter that moves, the chain after it, and two sites, one of which misses rounds."""
    rng = np.random.default_rng(0)
    exact = rng.standard_normal(NUMEL).astype(np.float32)
    chain = DeltaChain.start(exact)
    steady, absent = exact.copy(), None
    wholes = 0
    for r in range(rounds):
        delta = (rng.standard_normal(NUMEL) * 0.01).astype(np.float32)
        exact = exact + delta
        link = chain.advance(chain.held + delta, MANIFEST, codec, feedback=feedback)
        change = decode_payload(link.payload, link.data, MANIFEST, kind="delta")
        steady = follow(steady, link.base, change)
        if r % 3 != 1:
            try:
                absent = follow(absent, link.base, change)
            except ProtocolError:
                payload, data = link.whole(MANIFEST)
                absent = decode_payload(payload, data, MANIFEST, kind="adapter")
                wholes += 1
            assert absent.tobytes() == link.after.held.tobytes()
        chain = link.after
        assert steady.tobytes() == chain.held.tobytes()
    return exact, chain, wholes


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4+zstd", "int2", "topk-0.1"])
def test_every_site_holds_the_same(codec: str) -> None:
    """A site in every round and one that misses some hold the aggregator's vector bit for bit; the
    second is sent the whole adapter after each gap only."""
    _, _, wholes = walk(12, codec)
    assert wholes == 5


def test_no_drift() -> None:
    """After fifty rounds at 2 bits the sites are one round's error from the exact adapter; without
    the feedback the errors would have added up."""
    exact, chain, _ = walk(50, "int2")
    _, loose, _ = walk(50, "int2", feedback=False)
    near = np.linalg.norm(chain.held - exact)
    assert near < 0.5 * 0.01 * np.sqrt(NUMEL)
    assert np.linalg.norm(loose.held - exact) > 4 * near


def test_refusals() -> None:
    """A change of another adapter is not applied, and a lossy whole adapter is not sent."""
    start = np.arange(NUMEL, dtype=np.float32) / 7
    link = DeltaChain.start(start).advance(start * 2, MANIFEST, "int4")
    for held in (None, start + 1, start[:-1]):
        with pytest.raises(ProtocolError, match="does not hold"):
            follow(held, link.base, np.zeros(NUMEL, np.float32))
    with pytest.raises(ProtocolError, match="must be exact"):
        link.whole(MANIFEST, "bf16")
    with pytest.raises(ProtocolError, match="cannot follow"):
        DeltaChain.start(start).advance(start[:-1], MANIFEST, "int4")
