"""Full defaults, one override: studies, adapters and updates for the aggregation tests."""

from typing import Any

import numpy as np

from protocol.manifest import AdapterManifest, TensorSpec
from protocol.study import StudySettings
from server.aggregation import Aggregate, ServerState, Update, make_aggregator


def study(
    *, minimum_sites: int = 2, sites: tuple[str, ...] = (), **aggregation: Any
) -> StudySettings:
    return StudySettings.model_validate(
        {
            "name": "test",
            "model": {"base": "base", "quantization": "none"},
            "rounds": {"minimum_sites": minimum_sites},
            "sites": sites,
            "aggregation": aggregation,
        }
    )


def flat(numel: int) -> AdapterManifest:
    """An adapter without LoRA factors."""
    return AdapterManifest(tensors=(TensorSpec(name="w", shape=(numel,)),))


def lora(rank: int = 4, *, out: int = 12, width: int = 9, score: int = 3) -> AdapterManifest:
    """Two LoRA pairs of different shapes and a tensor that is none."""
    return AdapterManifest(
        tensors=(
            TensorSpec(name="m.q.lora_A.weight", shape=(rank, width)),
            TensorSpec(name="m.q.lora_B.weight", shape=(out, rank)),
            TensorSpec(name="m.v.lora_A.weight", shape=(rank, out)),
            TensorSpec(name="m.v.lora_B.weight", shape=(width, rank)),
            TensorSpec(name="score.weight", shape=(score,)),
        )
    )


def vector(numel: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(numel) * scale).astype(np.float32)


def updates(numel: int, count: int, seed: int = 0) -> list[Update]:
    weights = np.random.default_rng(seed).uniform(1, 100, count)
    return [
        Update(f"site-{k}", float(weights[k]), vector(numel, 100 * seed + k)) for k in range(count)
    ]


def run(
    settings: StudySettings,
    manifest: AdapterManifest,
    reference: np.ndarray,
    given: list[Update],
    *,
    round_number: int = 1,
    state: ServerState | None = None,
    total_sites: int = 0,
) -> Aggregate:
    """One round from start to end."""
    aggregator = make_aggregator(
        settings,
        manifest,
        reference,
        round_number=round_number,
        state=state or ServerState(),
        total_sites=total_sites,
    )
    for update in given:
        aggregator.add(update)
    return aggregator.finish()


def products(manifest: AdapterManifest, adapter: np.ndarray) -> dict[str, np.ndarray]:
    """B A of each module in float64, formed the plain way."""
    tensors = {
        tensor.name: adapter[where].reshape(tensor.shape).astype(np.float64)
        for tensor, where in manifest.slices()
    }
    return {
        name.removesuffix(".lora_A.weight"): tensors[name.replace("lora_A", "lora_B")] @ a
        for name, a in tensors.items()
        if "lora_A" in name
    }
