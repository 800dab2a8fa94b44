"""The finished adapter in PEFT's own layout: `PeftModel.from_pretrained(base, folder)` reads it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from protocol.files import write_atomic
from protocol.manifest import AdapterManifest
from protocol.study import StudySettings

from . import safetensors
from .aggregation import Merge
from .checkpoint import Vector
from .merges import MergeHistory

FOLDER = "adapter"


def write_adapter(
    folder: Path,
    settings: StudySettings,
    manifest: AdapterManifest,
    adapter: Vector,
    history: MergeHistory | None = None,
) -> Path:
    """Write adapter_config.json and adapter_model.safetensors to `folder`/adapter.

    What rounds have added to the base (`history`) is in it too, as further LoRA directions: the
    adapter works on the base as everybody has it.

    Raises:
        OSError: the disk is full or not writable.
    """
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    tensors = {spec.name: adapter[place].reshape(spec.shape) for spec, place in manifest.slices()}
    if "prompt_encoder.embedding.weight" in tensors:
        tensors = {"prompt_embeddings": encoded(tensors)}
    about = adapter_config(settings, manifest)
    if history is not None and history.rounds:
        ranks = _join(tensors, history.stacked())
        about |= _ranks(settings, ranks)
    config = json.dumps(about, indent=2) + "\n"
    write_atomic(target / "adapter_model.safetensors", safetensors.dump(tensors, {"format": "pt"}))
    write_atomic(target / "adapter_config.json", config.encode())
    return target


def adapter_config(settings: StudySettings, manifest: AdapterManifest) -> dict[str, Any]:
    """What PEFT needs to build the same adapter around the same base."""
    adapter = settings.adapter
    common = {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": settings.model.base,
        "inference_mode": True,
    }
    if adapter.kind == "ia3":
        return common | {"peft_type": "IA3"} | _ia3_modules(manifest)
    if adapter.virtual:
        kinds = {"prompt": "PROMPT_TUNING", "p-tuning": "P_TUNING", "prefix": "PREFIX_TUNING"}
        return common | {
            "peft_type": kinds[adapter.kind],
            "num_virtual_tokens": adapter.virtual_tokens,
        }
    modules: str | list[str] = (
        adapter.target_modules
        if isinstance(adapter.target_modules, str)
        else list(adapter.target_modules)
    )
    return common | {
        "peft_type": "LORA",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": modules,
        "bias": "none",
        "use_rslora": adapter.kind == "rslora",
        "use_dora": adapter.kind == "dora",
    }


def _join(tensors: dict[str, Vector], merged: Mapping[str, Merge]) -> dict[str, int]:
    """Put every change of the base beside its pair: B A + b a = [B b] [A; a]; returns the ranks.

    A product of more directions than its matrix has is written with those that it has, exactly.
    """
    ranks = {}
    for module, change in merged.items():
        names = (f"{module}.lora_B.weight", f"{module}.lora_A.weight")
        b = np.hstack([tensors[names[0]], change.b])
        a = np.vstack([tensors[names[1]], change.a])
        full = min(b.shape[0], a.shape[1])
        if b.shape[1] > full:
            u, sigma, vt = np.linalg.svd(b.astype(np.float64) @ a, full_matrices=False)
            b, a = (u * sigma).astype(np.float32), vt.astype(np.float32)
        tensors[names[0]], tensors[names[1]] = np.ascontiguousarray(b), np.ascontiguousarray(a)
        ranks[module] = b.shape[1]
    return ranks


def _ranks(settings: StudySettings, ranks: Mapping[str, int]) -> dict[str, Any]:
    """PEFT's words for another rank in each module, at the study's scale."""
    adapter = settings.adapter
    root = adapter.kind == "rslora"
    scale = adapter.alpha / (math.sqrt(adapter.rank) if root else adapter.rank)
    by_module = {module.removeprefix("base_model.model."): rank for module, rank in ranks.items()}
    return {
        "rank_pattern": by_module,
        "alpha_pattern": {
            module: scale * (math.sqrt(rank) if root else rank)
            for module, rank in by_module.items()
        },
    }


def encoded(tensors: Mapping[str, Vector]) -> Vector:
    """What an encoder makes of its virtual tokens: float32 (virtual tokens, width).

    That is all PEFT saves and loads of p-tuning and prefix tuning: layers with a ReLU between them
    (p-tuning) or a tanh (prefix).
    """
    values = tensors["prompt_encoder.embedding.weight"]
    head = "mlp_head" if "prompt_encoder.mlp_head.0.weight" in tensors else "transform"
    layers = sorted(
        name.removesuffix(".weight")
        for name in tensors
        if name.startswith(f"prompt_encoder.{head}.") and name.endswith(".weight")
    )
    for layer in layers:
        if layer != layers[0]:
            values = np.maximum(values, 0) if head == "mlp_head" else np.tanh(values)
        values = values @ tensors[f"{layer}.weight"].T + tensors[f"{layer}.bias"]
    return np.ascontiguousarray(values, dtype=np.float32)


def _ia3_modules(manifest: AdapterManifest) -> dict[str, list[str]]:
    """IA3's modules by name: the aggregator never sees the model, so the layout tells them.

    PEFT keeps a feed-forward module's factors as [1, in] and the others' as [out, 1]; a module is
    named by its last two parts, because GPT-2 has a `c_proj` of either kind.
    """
    targets: set[str] = set()
    forward: set[str] = set()
    for tensor in manifest.tensors:
        name = ".".join(tensor.name.removesuffix(".ia3_l").split(".")[-2:])
        targets.add(name)
        if tensor.shape[0] == 1:
            forward.add(name)
    return {"target_modules": sorted(targets), "feedforward_modules": sorted(forward)}
