"""The weighted mean, what may enter it, and the state that goes with a checkpoint."""

import io
import tracemalloc

import numpy as np
import pytest
from aggregation_factories import flat, lora, run, study, updates, vector

from protocol.codec import narrow, widen, with_rank
from protocol.errors import ProtocolError
from server.aggregation import AggregationError, ServerState, Update, make_aggregator

N = 1000
METHODS = [
    {"strategy": "fedavg"},
    {"strategy": "fedprox"},
    {"strategy": "fedavgm"},
    {"strategy": "fedadagrad"},
    {"strategy": "fedyogi"},
    {"strategy": "fedadam"},
    {"strategy": "scaffold"},
    {"strategy": "median"},
    {"strategy": "trimmed-mean"},
    {"strategy": "krum"},
    {"strategy": "multi-krum"},
    {"lora": "flexlora"},
    {"lora": "ffa"},
    {"lora": "rolora"},
    {"lora": "fedex"},
    {"lora": "flora"},
]
IDS = ["-".join(method.values()) for method in METHODS]


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox"])
def test_against_a_plain_mean(strategy: str) -> None:
    """FedAvg, and FedProx's server half, is the reference plus numpy's weighted average."""
    for seed in range(5):
        given = updates(N, seed + 1, seed)
        reference = vector(N, 99)
        expected = reference + np.average(
            [u.delta.astype(np.float64) for u in given], axis=0, weights=[u.weight for u in given]
        )
        result = run(study(strategy=strategy), flat(N), reference, given)
        assert np.allclose(result.adapter, expected, rtol=0, atol=1e-6)
        assert result.info["sites"] == seed + 1
        assert result.info["weight"] == pytest.approx(sum(u.weight for u in given))
        assert result.info["update_norm"] == pytest.approx(
            np.linalg.norm(expected - reference), rel=1e-5
        )


def test_server_learning_rate() -> None:
    """FedAvg with half the server learning rate goes half the way."""
    given, reference = updates(N, 3), np.zeros(N, np.float32)
    whole = run(study(), flat(N), reference, given).adapter
    half = run(study(server_learning_rate=0.5), flat(N), reference, given).adapter
    assert np.allclose(half, whole / 2, atol=1e-7)


def test_fednova_against_its_formula() -> None:
    """With normalise_steps each update counts by the step; with equal steps nothing changes."""
    given = [
        Update(u.site, u.weight, u.delta, steps=steps)
        for u, steps in zip(updates(N, 3), (2, 10, 30), strict=True)
    ]
    p = np.array([u.weight for u in given]) / sum(u.weight for u in given)
    tau = np.array([u.steps for u in given])
    deltas = np.stack([u.delta.astype(np.float64) for u in given])
    expected = (p @ tau) * ((p / tau) @ deltas)
    zero = np.zeros(N, np.float32)
    result = run(study(normalise_steps=True), flat(N), zero, given)
    assert np.allclose(result.adapter, expected, atol=1e-5)

    equal = [Update(u.site, u.weight, u.delta, steps=7) for u in given]
    assert np.allclose(
        run(study(normalise_steps=True), flat(N), zero, equal).adapter,
        run(study(), flat(N), zero, equal).adapter,
        atol=1e-6,
    )
    with pytest.raises(ProtocolError, match="steps"):
        run(study(normalise_steps=True), flat(N), zero, updates(N, 1))


def test_memory_does_not_grow_with_sites() -> None:
    """Forty sites take no more memory than five: an update is not held."""
    numel = 1 << 20
    delta = vector(numel, 0)
    peaks = []
    for count in (5, 40):
        tracemalloc.start()
        aggregator = make_aggregator(
            study(), flat(numel), delta, round_number=1, state=ServerState()
        )
        for k in range(count):
            aggregator.add(Update(f"site-{k}", 1.0, delta.copy()))
        aggregator.finish()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.01 * peaks[0]
    assert peaks[0] < 6 * delta.nbytes


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_bad_updates_leave_no_trace(method: dict[str, str]) -> None:
    """Each method refuses each bad update, and then ends as if it had never come."""
    manifest = lora()
    numel = manifest.numel
    settings = study(minimum_sites=5, **method)
    good = [Update(u.site, u.weight, u.delta, control=u.delta / 2) for u in updates(numel, 5)]
    reference = vector(numel, 7)
    expected = run(settings, manifest, reference, good)

    poisoned = good[0].delta.copy()
    poisoned[3] = np.nan
    endless = good[0].delta.copy()
    endless[-1] = -np.inf
    bad = [
        Update("x", 1.0, poisoned, control=good[0].delta),
        Update("x", 1.0, endless, control=good[0].delta),
        Update("x", 1.0, good[0].delta[:-1], control=good[0].delta),
        Update("x", 1.0, good[0].delta.astype(np.float64), control=good[0].delta),
        Update("x", 0.0, good[0].delta, control=good[0].delta),
        Update("x", float("nan"), good[0].delta, control=good[0].delta),
        Update("x", float("inf"), good[0].delta, control=good[0].delta),
        Update("x", -1.0, good[0].delta, control=good[0].delta),
        Update("site-0", 1.0, good[0].delta, control=good[0].delta),
        Update("x", 1.0, good[0].delta, lora(out=13), control=good[0].delta),
    ]
    aggregator = make_aggregator(settings, manifest, reference, round_number=1, state=ServerState())
    aggregator.add(good[0])
    for update in bad:
        with pytest.raises(ProtocolError):
            aggregator.add(update)
    for update in good[1:]:
        aggregator.add(update)
    result = aggregator.finish()
    assert np.array_equal(result.adapter, expected.adapter)
    assert result.info == expected.info
    assert all(np.isfinite(list(result.info.values())))


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_nothing_came(method: dict[str, str]) -> None:
    """A round without updates is an error of the round, not an adapter."""
    with pytest.raises(AggregationError):
        run(study(minimum_sites=5, **method), lora(), vector(lora().numel, 0), [])


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_inputs_are_left_alone(method: dict[str, str]) -> None:
    """Neither the reference, the updates nor the state change, so a round can be done again."""
    manifest = lora()
    settings = study(minimum_sites=5, **method)
    reference = vector(manifest.numel, 1)
    given = [
        Update(u.site, u.weight, u.delta, control=u.delta / 2) for u in updates(manifest.numel, 5)
    ]
    state = run(settings, manifest, reference, given).state
    for array in (reference, *state.vectors.values(), *(u.delta for u in given)):
        array.flags.writeable = False
    one = run(settings, manifest, reference, given, round_number=2, state=state)
    two = run(settings, manifest, reference, given, round_number=2, state=state)
    assert np.array_equal(one.adapter, two.adapter)
    assert one.adapter.dtype == np.float32
    assert one.adapter.flags.writeable


def test_a_part_of_the_adapter() -> None:
    """An update of a smaller rank counts where it has values, and for no change elsewhere."""
    whole = lora(4)
    part = with_rank(whole, 2)
    small, large = vector(part.numel, 1), vector(whole.numel, 2)
    given = [Update("small", 1.0, small, part), Update("large", 1.0, large)]
    result = run(study(), whole, np.zeros(whole.numel, np.float32), given)
    assert np.allclose(result.adapter, (widen(small, part, whole) + large) / 2, atol=1e-7)
    assert np.allclose(
        narrow(result.adapter, whole, part) * 2 - narrow(large, whole, part), small, atol=1e-6
    )


def test_state_as_bytes() -> None:
    """A state comes back from its bytes, bit for bit."""
    state = ServerState("fedadam", {"m": vector(N, 1), "v": vector(N, 2)})
    again = ServerState.from_bytes(state.to_bytes())
    assert again.algorithm == "fedadam"
    assert {k: v.tobytes() for k, v in again.vectors.items()} == {
        k: v.tobytes() for k, v in state.vectors.items()
    }
    assert ServerState.from_bytes(ServerState().to_bytes()) == ServerState()


def test_state_refuses() -> None:
    """Damaged bytes, pickles, and values that are not finite float32 vectors are refused."""
    data = ServerState("fedavgm", {"m": vector(50, 1)}).to_bytes()
    for length in range(0, len(data), 7):
        with pytest.raises(ProtocolError):
            ServerState.from_bytes(data[:length])
    for bad in (np.full(3, np.nan, np.float32), np.zeros(3), np.zeros((3, 3), np.float32)):
        with pytest.raises(ProtocolError):
            ServerState.from_bytes(ServerState("x", {"m": bad}).to_bytes())
    pickled = io.BytesIO()
    np.savez(pickled, algorithm=np.zeros(0, np.uint8), m=np.array([object()]))
    with pytest.raises(ProtocolError):
        ServerState.from_bytes(pickled.getvalue())


def test_state_of_another_strategy() -> None:
    """A checkpoint of one strategy is not continued with another, nor with another adapter."""
    state = run(study(strategy="fedadam"), flat(N), vector(N, 0), updates(N, 2)).state
    for settings, numel in ((study(strategy="fedyogi"), N), (study(strategy="fedadam"), N + 1)):
        with pytest.raises(ProtocolError):
            run(settings, flat(numel), vector(numel, 0), updates(numel, 2), state=state)


def test_reference_must_fit() -> None:
    """A reference of the wrong length is refused before any update is taken."""
    with pytest.raises(ProtocolError, match="reference"):
        make_aggregator(study(), flat(N), vector(N - 1, 0), round_number=1, state=ServerState())
