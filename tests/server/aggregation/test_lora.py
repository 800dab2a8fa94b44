"""What is particular to LoRA: products, ranks, frozen factors, changes of the base."""

import tracemalloc

import numpy as np
import pytest
from aggregation_factories import flat, lora, products, run, study, vector

from protocol.codec import narrow, trained_part, with_rank
from protocol.errors import ProtocolError
from protocol.manifest import AdapterManifest, TensorSpec
from server.aggregation import Aggregate, ServerState, Update, make_aggregator
from server.aggregation._lora import decompose, find_pairs


def given(manifest: AdapterManifest, count: int, scale: float = 1.0) -> list[Update]:
    return [
        Update(f"s{k}", float(k + 1), vector(manifest.numel, 10 + k, scale)) for k in range(count)
    ]


def exact(manifest: AdapterManifest, reference: np.ndarray, updates: list[Update]):
    """Σ p_k B_k A_k of each module, dense, in float64."""
    total = sum(u.weight for u in updates)
    each = [products(manifest, reference + u.delta) for u in updates]
    return {
        module: sum(u.weight / total * p[module] for u, p in zip(updates, each, strict=True))
        for module in each[0]
    }


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrix)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def test_decompose_is_the_svd() -> None:
    """Through the factors come the dense product's singular values and its truncations,
    whether the stack is thinner or wider than the matrix."""
    for seed, (out, width, stacked) in enumerate(
        [(40, 30, 8), (30, 40, 8), (12, 9, 30), (5, 50, 7)]
    ):
        b, a = (
            vector(out * stacked, seed).reshape(out, -1),
            vector(stacked * width, 9).reshape(-1, width),
        )
        product = b.astype(np.float64) @ a
        found = decompose(b, a)
        sigma = np.linalg.svd(product, compute_uv=False)[: found.sigma.size]
        assert np.allclose(found.sigma, sigma, rtol=1e-5, atol=1e-5 * sigma[0])
        assert found.energy == pytest.approx(np.sum(product**2), rel=1e-5)
        for rank in (1, 4, found.sigma.size):
            left, right, lost = found.top(rank)
            assert np.allclose(right @ right.T, np.eye(rank), atol=1e-4)
            assert np.allclose(left @ right, truncated(product, rank), atol=1e-5 * sigma[0])
            assert lost == pytest.approx(np.sum(sigma[rank:] ** 2), abs=1e-4 * found.energy)


@pytest.mark.parametrize("copies", [2, 8])
def test_decompose_of_equal_blocks(copies: int) -> None:
    """Sites that send the same factors, or nothing at all, leave no noise direction behind."""
    b, a = vector(40 * 4, 1).reshape(40, 4), vector(4 * 30, 2).reshape(4, 30)
    found = decompose(np.hstack([b] * copies), np.vstack([a] * copies))
    assert found.sigma.size == 4
    left, right, lost = found.top(4)
    assert np.allclose(left @ right, copies * (b @ a), rtol=0, atol=1e-4)
    assert lost == 0.0
    assert decompose(np.zeros((40, 4), np.float32), a).sigma.size == 0


def test_flexlora_is_the_best_rank_r() -> None:
    """FlexLoRA's factors multiply to the truncated SVD of the exact weighted product, and the
    energy it reports is the share that was kept; what is no factor is averaged."""
    manifest = lora(4)
    reference, updates = vector(manifest.numel, 0), given(manifest, 5)
    result = run(study(lora="flexlora"), manifest, reference, updates)
    wanted = exact(manifest, reference, updates)
    kept = total = 0.0
    for module, product in products(manifest, result.adapter).items():
        best = truncated(wanted[module], 4)
        assert np.allclose(product, best, atol=2e-5 * np.linalg.norm(best))
        kept += np.sum(best**2)
        total += np.sum(wanted[module] ** 2)
    assert result.info["captured_energy"] == pytest.approx(kept / total, abs=1e-5)
    assert 0 < result.info["captured_energy_min"] <= result.info["captured_energy"] < 1
    assert result.info["compression_error"] == 0.0
    plain = run(study(), manifest, reference, updates)
    assert np.allclose(result.adapter[-3:], plain.adapter[-3:], atol=1e-6)


def test_flexlora_keeps_what_agrees() -> None:
    """With one site, or sites that agree, nothing is lost and the product comes back."""
    manifest = lora(4)
    reference, delta = vector(manifest.numel, 0), vector(manifest.numel, 1)
    updates = [Update(f"s{k}", 1.0, delta) for k in range(3)]
    result = run(study(lora="flexlora"), manifest, reference, updates)
    for module, product in products(manifest, result.adapter).items():
        same = products(manifest, reference + delta)[module]
        assert np.allclose(product, same, atol=1e-5 * np.linalg.norm(same))
    assert result.info["captured_energy"] == pytest.approx(1.0, abs=1e-9)


def test_flexlora_leaves_a_direction_for_every_row() -> None:
    """A keeps its row norm and full rank even where the product is zero, so B can still learn."""
    manifest = lora(4)
    reference = vector(manifest.numel, 0)
    for pair in find_pairs(manifest):
        b, _ = pair.factors(reference)
        b[:] = 0
    updates = [Update("s", 1.0, np.zeros(manifest.numel, np.float32))]
    result = run(study(lora="flexlora"), manifest, reference, updates)
    for pair in find_pairs(manifest):
        b, a = pair.factors(result.adapter)
        assert not b.any()
        assert np.linalg.matrix_rank(a) == 4
        _, old = pair.factors(reference)
        assert np.linalg.norm(a) == pytest.approx(np.linalg.norm(old), rel=1e-5)


def test_flexlora_mixed_ranks() -> None:
    """Sites of rank 2, 4 and 1 meet in the exact product of their own adapters; the small ones
    begin from the first directions, which are the strongest."""
    manifest = lora(4)
    reference = run(
        study(lora="flexlora"), manifest, vector(manifest.numel, 0), given(manifest, 3)
    ).adapter
    parts = [with_rank(manifest, rank) for rank in (2, 4, 1)]
    updates = [
        Update(f"s{k}", float(k + 1), vector(part.numel, 20 + k, 0.1), part)
        for k, part in enumerate(parts)
    ]
    result = run(study(lora="flexlora"), manifest, reference, updates)
    each = [
        products(part, narrow(reference, manifest, part) + update.delta)
        for part, update in zip(parts, updates, strict=True)
    ]
    for module, product in products(manifest, result.adapter).items():
        wanted = sum(u.weight / 6 * p[module] for u, p in zip(updates, each, strict=True))
        best = truncated(wanted, 4)
        assert np.allclose(product, best, atol=2e-5 * np.linalg.norm(best))
    for module, product in products(manifest, reference).items():
        cut = products(parts[0], narrow(reference, manifest, parts[0]))[module]
        assert np.allclose(cut, truncated(product, 2), atol=1e-4 * np.linalg.norm(product))


def test_flexlora_compresses_the_stack() -> None:
    """Beyond stack_sites memory stops growing, and the error stays below the one reported."""
    manifest = lora(2, out=300, width=200)
    reference = vector(manifest.numel, 0)
    common = vector(manifest.numel, 1)
    updates = [
        Update(f"s{k}", 1.0, common + vector(manifest.numel, 30 + k, 0.05)) for k in range(40)
    ]
    settings = study(lora="flexlora", stack_sites=8)
    result = run(settings, manifest, reference, updates)
    wanted = exact(manifest, reference, updates)
    error = np.sqrt(
        sum(
            np.linalg.norm(product - truncated(wanted[module], 2)) ** 2
            for module, product in products(manifest, result.adapter).items()
        )
    ) / np.sqrt(sum(np.linalg.norm(product) ** 2 for product in wanted.values()))
    assert 0 < result.info["compression_error"] < 0.2
    assert error < 2 * result.info["compression_error"]

    peaks = []
    for count in (16, 40):
        tracemalloc.start()
        run(settings, manifest, reference, updates[:count])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.02 * peaks[0]


def test_averaging_factors_is_not_exact() -> None:
    """The reason for all of this: averaged factors multiply to something else."""
    manifest = lora(4)
    reference, updates = vector(manifest.numel, 0), given(manifest, 3)
    plain = products(manifest, run(study(), manifest, reference, updates).adapter)
    wanted = exact(manifest, reference, updates)
    assert all(
        np.linalg.norm(plain[m] - wanted[m]) > 0.1 * np.linalg.norm(wanted[m]) for m in wanted
    )


@pytest.mark.parametrize(("method", "round_number"), [("ffa", 1), ("rolora", 1), ("rolora", 2)])
def test_one_factor_is_exact(method: str, round_number: int) -> None:
    """With one factor frozen the average of the other is the exact product, whether the update
    has both factors or only the one that trains."""
    manifest = lora(4)
    settings = study(lora=method)
    trained = settings.aggregation.trained_factors(round_number)
    part = trained_part(manifest, trained)
    reference = vector(manifest.numel, 0)
    small = [Update(f"s{k}", k + 1.0, vector(part.numel, k), part) for k in range(3)]
    full = []
    for update in small:
        delta = np.zeros(manifest.numel, np.float32)
        places = {tensor.name: where for tensor, where in manifest.slices()}
        for tensor, where in part.slices():
            delta[places[tensor.name]] = update.delta[where]
        full.append(Update(update.site, update.weight, delta))
    result = run(settings, manifest, reference, small, round_number=round_number)
    same = run(settings, manifest, reference, full, round_number=round_number)
    assert np.array_equal(result.adapter, same.adapter)
    wanted = exact(manifest, reference, full)
    for module, product in products(manifest, result.adapter).items():
        assert np.allclose(product, wanted[module], atol=1e-5)


def test_turns() -> None:
    """RoLoRA trains B first, because A's gradient is zero while B is; FFA-LoRA trains only B."""
    rolora, ffa = study(lora="rolora").aggregation, study(lora="ffa").aggregation
    assert [rolora.trained_factors(r) for r in (1, 2, 3)] == [{"B"}, {"A"}, {"B"}]
    assert [ffa.trained_factors(r) for r in (1, 2, 3)] == [{"B"}] * 3
    assert study().aggregation.trained_factors(1) == {"A", "B"}


def test_frozen_factor_is_not_looked_at() -> None:
    """What an update says about the frozen factor changes nothing."""
    manifest = lora(4)
    reference, updates = vector(manifest.numel, 0), given(manifest, 3)
    result = run(study(lora="ffa"), manifest, reference, updates)
    for pair in find_pairs(manifest):
        assert np.array_equal(pair.factors(result.adapter)[1], pair.factors(reference)[1])
        assert not np.array_equal(pair.factors(result.adapter)[0], pair.factors(reference)[0])


def test_manifest_of_b_only() -> None:
    """An FFA-LoRA study may leave A out of the adapter altogether; RoLoRA's may not."""
    manifest = trained_part(lora(4), {"B"})
    result = run(study(lora="ffa"), manifest, vector(manifest.numel, 0), given(manifest, 2))
    assert result.adapter.shape == (manifest.numel,)
    only_b = AdapterManifest(tensors=manifest.tensors[:2])
    with pytest.raises(ProtocolError, match="no tensor"):
        run(study(lora="rolora"), only_b, vector(only_b.numel, 0), [], round_number=2)


def merged(manifest: AdapterManifest, result: Aggregate) -> dict[str, np.ndarray]:
    """What a site computes with after the round: the merge and the new adapter's product."""
    return {
        module: product + result.merge[module].b.astype(np.float64) @ result.merge[module].a
        for module, product in products(manifest, result.adapter).items()
    }


@pytest.mark.parametrize("method", ["fedex", "flora"])
def test_exact_with_the_base(method: str) -> None:
    """FedEx and FLoRA: the new adapter and the change of the base are the exact product together,
    and mixed ranks are no obstacle."""
    manifest = lora(4)
    reference, updates = vector(manifest.numel, 0), given(manifest, 4)
    result = run(study(lora=method), manifest, reference, updates)
    wanted = exact(manifest, reference, updates)
    for module, product in merged(manifest, result).items():
        assert np.allclose(product, wanted[module], atol=1e-5 * np.linalg.norm(wanted[module]))
    norm = np.sqrt(sum(np.linalg.norm(m.b.astype(float) @ m.a) ** 2 for m in result.merge.values()))
    assert result.info["merge_norm"] == pytest.approx(norm, rel=1e-4)

    part = with_rank(manifest, 2)
    mixed = [updates[0], Update("small", 2.0, vector(part.numel, 5), part)]
    result = run(study(lora=method), manifest, reference, mixed)
    small = products(part, narrow(reference, manifest, part) + mixed[1].delta)
    large = products(manifest, reference + mixed[0].delta)
    for module, product in merged(manifest, result).items():
        assert np.allclose(product, large[module] / 3 + small[module] * 2 / 3, atol=1e-4)


def test_fedex_keeps_the_average() -> None:
    """FedEx's adapter is FedAvg's."""
    manifest = lora(4)
    reference, updates = vector(manifest.numel, 0), given(manifest, 3)
    result = run(study(lora="fedex"), manifest, reference, updates)
    assert np.array_equal(result.adapter, run(study(), manifest, reference, updates).adapter)


def test_flora_begins_again() -> None:
    """FLoRA's new adapter adds nothing (B is zero), A is drawn as PEFT draws it, and the draw is
    the same for the same seed and round."""
    manifest = lora(64, width=100)
    reference, updates = vector(manifest.numel, 0), given(manifest, 2)
    one = run(study(lora="flora"), manifest, reference, updates, round_number=3)
    two = run(study(lora="flora"), manifest, reference, updates, round_number=3)
    other = run(study(lora="flora"), manifest, reference, updates, round_number=4)
    assert np.array_equal(one.adapter, two.adapter)
    assert not np.array_equal(one.adapter, other.adapter)
    for pair in find_pairs(manifest):
        b, a = pair.factors(one.adapter)
        assert not b.any()
        assert np.abs(a).max() <= 1 / np.sqrt(pair.a_shape[1])
        assert np.linalg.norm(a) / 8 == pytest.approx(1 / np.sqrt(3), rel=0.05)


@pytest.mark.parametrize("method", ["flexlora", "fedex", "flora"])
@pytest.mark.parametrize(
    "manifest",
    [
        flat(10),
        AdapterManifest(tensors=lora().tensors[:1]),
        AdapterManifest(
            tensors=(
                TensorSpec(name="m.lora_A.weight", shape=(2, 5)),
                TensorSpec(name="m.lora_B.weight", shape=(5, 3)),
            )
        ),
    ],
    ids=["no factors", "A alone", "ranks differ"],
)
def test_needs_pairs(method: str, manifest: AdapterManifest) -> None:
    """A method about pairs refuses an adapter that has none, before any update is taken."""
    with pytest.raises(ProtocolError):
        make_aggregator(
            study(lora=method),
            manifest,
            vector(manifest.numel, 0),
            round_number=1,
            state=ServerState(),
        )
