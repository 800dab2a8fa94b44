"""The adapter on a resident base model: built once, then only its numbers change.

Names are those of PEFT's saved state dict, so the flat vector written under them is a file that
stock `peft` loads. The exception are the encoders of p-tuning and prefix tuning: PEFT saves what an
encoder makes, which could not be trained on in the next round, so here the encoder's own weights
are the adapter (PEFT's names of them, without the adapter's), and the aggregator runs the encoder
once, when the study is over.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from protocol.manifest import AdapterManifest, TensorSpec
from protocol.states import Reason
from protocol.study import AdapterSettings

from .errors import Refusal

Vector = NDArray[np.float32]

_ZERO: Final = re.compile(r"\.lora_(B|embedding_A)(\.weight)?$")
_NORMAL: Final = re.compile(r"\.lora_embedding_B(\.weight)?$")
_ONE: Final = re.compile(r"\.ia3_l$")
_MAGNITUDE: Final = re.compile(r"\.lora_magnitude_vector(\.weight)?$")
_EMBEDDING: Final = re.compile(r"prompt_embeddings$|prompt_encoder\.embedding\.weight$")
# About the size of a base's embeddings. PEFT's unit variance is far outside of them, and AdamW's
# steps of the learning rate's size hardly move it: on the embedded base, 64 steps at 0.003 brought
# the loss of a constant answer from 14.0 to 6.9 from here, and to 13.4 from unit variance. What an
# encoder reads learns faster from unit variance (6.9, against 12.1).
_PROMPT_SPREAD: Final = np.float32(0.02)
_FACTOR_B: Final = re.compile(r"\.lora_(embedding_)?B(\.weight)?$")


@dataclass(frozen=True)
class Adapter:
    """The trainable tensors of a PEFT model, in the manifest's order."""

    settings: AdapterSettings
    manifest: AdapterManifest
    parameters: tuple[torch.nn.Parameter, ...]  # float32 on the model's device
    magnitudes: Mapping[str, Vector] = field(default_factory=dict)  # DoRA: row lengths of the base

    def initial(self, seed: int) -> Vector:
        """The adapter a study begins with; see the function of this name.

        DoRA's magnitudes begin as the lengths of the base's rows, so they are this machine's to
        the last bit; every site gets those of the one that was asked for them.
        """
        vector = initial(self.manifest, seed)
        for tensor, place in self.manifest.slices():
            if tensor.name in self.magnitudes:
                vector[place] = self.magnitudes[tensor.name].reshape(-1)
        return vector

    def load(self, vector: Vector) -> None:
        """Put the numbers of `vector` (float32, (manifest.numel,)) into the model."""
        with torch.no_grad():
            for parameter, (_, place) in zip(self.parameters, self.manifest.slices(), strict=True):
                values = torch.from_numpy(np.ascontiguousarray(vector[place]))
                parameter.copy_(values.view(parameter.shape))

    def read(self) -> Vector:
        """The numbers in the model, laid end to end: float32, (manifest.numel,)."""
        vector = np.empty(self.manifest.numel, dtype=np.float32)
        for parameter, (_, place) in zip(self.parameters, self.manifest.slices(), strict=True):
            vector[place] = parameter.detach().to("cpu", torch.float32).numpy().reshape(-1)
        return vector

    def train_only(self, factors: frozenset[str]) -> list[torch.nn.Parameter]:
        """Freeze the LoRA factors not in `factors` (of "A", "B"); returns those that train."""
        trained = []
        for parameter, tensor in zip(self.parameters, self.manifest.tensors, strict=True):
            factor = "B" if _FACTOR_B.search(tensor.name) else "A"
            parameter.requires_grad_(factor in factors)
            if factor in factors:
                trained.append(parameter)
        return trained


def of_smaller_rank(settings: AdapterSettings, rank: int | None) -> AdapterSettings:
    """The same adapter with LoRA rank `rank` and the study's scale; None leaves it as it is.

    PEFT's scale is alpha / r, with rslora alpha / sqrt(r).
    """
    if rank is None or rank == settings.rank:
        return settings
    share = rank / settings.rank
    alpha = settings.alpha * (math.sqrt(share) if settings.kind == "rslora" else share)
    return settings.model_copy(update={"rank": rank, "alpha": alpha})


def affordable_rank(adapter: Adapter, rank: int) -> int:
    """`rank`, halved until training that adapter takes at most half of the memory that is free.

    Beside the weights, which are there already, a value needs its gradient and AdamW's two moments:
    12 bytes in float32.
    """
    device = adapter.parameters[0].device
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available
    size = 12 * adapter.manifest.numel
    while rank > 1 and size > free / 2:
        rank, size = rank // 2, size // 2
    return rank


def attach(base: Any, settings: AdapterSettings) -> tuple[Any, Adapter]:
    """Put an adapter on `base` (a transformers model); returns the PEFT model and its adapter.

    Raises:
        Refusal: a target module is not in this model, or PEFT cannot do what the settings ask.
    """
    import peft

    try:
        if settings.virtual:
            config = _prompt_learning(settings)
        else:
            config = _ia3(base, settings) if settings.kind == "ia3" else _lora(settings)
        model = peft.get_peft_model(base, config, autocast_adapter_dtype=True)
    except ValueError as error:
        what = f"target_modules = {settings.target_modules!r}"
        if settings.virtual:
            what = f"kind = {settings.kind!r}"
        raise Refusal(Reason.SITE_FORBIDS, f"adapter.{what} does not fit: {error}") from error
    if settings.virtual:
        return model, _virtual_adapter(model, settings)
    return model, _adapter(model, settings)


def _prompt_learning(settings: AdapterSettings) -> Any:
    import peft

    common = {"task_type": "CAUSAL_LM", "num_virtual_tokens": settings.virtual_tokens}
    width = settings.encoder_hidden_size
    if settings.kind == "prompt":
        return peft.PromptTuningConfig(**common)
    if settings.kind == "p-tuning":
        return peft.PromptEncoderConfig(**common, encoder_hidden_size=width)
    return peft.PrefixTuningConfig(
        **common, encoder_hidden_size=width, prefix_projection=width is not None
    )


def _lora(settings: AdapterSettings) -> Any:
    import peft

    targets = settings.target_modules
    return peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
        bias="none",
        use_rslora=settings.kind == "rslora",
        use_dora=settings.kind == "dora",
    )


def _ia3(base: Any, settings: AdapterSettings) -> Any:
    """IA3 where the paper has it (keys, values, inner feed-forward), or on the modules named.

    A feed-forward module has its input scaled, the others their output.
    """
    import peft
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FORWARD,
    )
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as TARGETS,
    )

    kind = str(base.config.model_type)
    known = sorted({name for names in FORWARD.values() for name in names})
    if isinstance(settings.target_modules, str):
        if kind not in TARGETS:
            raise ValueError(f"where ia3 goes in a {kind!r} is not known: name the modules")
        targets, forward = TARGETS[kind], FORWARD[kind]
    else:
        targets = list(settings.target_modules)
        forward = [name for name in targets if name in known]
    return peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=targets, feedforward_modules=forward
    )


def detach(model: Any) -> Any:
    """Take the adapter off; returns the base model as it was."""
    return model.get_base_model() if model.active_peft_config.is_prompt_learning else model.unload()


def _virtual_adapter(model: Any, settings: AdapterSettings) -> Adapter:
    """The parameters of PEFT's prompt encoder, under the name it saves them by if there is one."""
    named = dict(model.prompt_encoder["default"].named_parameters())
    if set(named) == {"embedding.weight"}:
        named = {"prompt_embeddings": named["embedding.weight"]}
    else:
        named = {f"prompt_encoder.{name}": parameter for name, parameter in named.items()}
    for parameter in named.values():
        parameter.data = parameter.data.float()
    names = sorted(named)
    manifest = AdapterManifest(
        tensors=tuple(TensorSpec(name=name, shape=tuple(named[name].shape)) for name in names)
    )
    return Adapter(settings, manifest, tuple(named[name] for name in names))


def _adapter(model: Any, settings: AdapterSettings) -> Adapter:
    import peft

    saved = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    trainable = {
        parameter.data_ptr(): parameter
        for parameter in model.parameters()
        if parameter.requires_grad
    }
    names = sorted(saved)
    missing = [name for name in names if saved[name].data_ptr() not in trainable]
    if missing or len(names) != len(trainable):
        raise Refusal(
            Reason.SITE_FORBIDS,
            f"this adapter on this model saves {len(names)} tensors and trains {len(trainable)}; "
            "only adapters that save what they train can be averaged",
        )
    for parameter in trainable.values():
        parameter.data = parameter.data.float()
    parameters = tuple(trainable[saved[name].data_ptr()] for name in names)
    manifest = AdapterManifest(
        tensors=tuple(TensorSpec(name=name, shape=tuple(saved[name].shape)) for name in names)
    )
    magnitudes = {
        name: saved[name].detach().to("cpu", torch.float32).numpy().copy()
        for name in names
        if _MAGNITUDE.search(name)
    }
    return Adapter(settings, manifest, parameters, magnitudes)


def initial(manifest: AdapterManifest, seed: int) -> Vector:
    """The adapter a study begins with: float32, (manifest.numel,), the same on every machine.

    PEFT's own distributions (A and an encoder uniform in +-1/sqrt(fan in), B zero, IA3's factors
    one; virtual tokens normal, see `_PROMPT_SPREAD`), drawn by numpy's Philox from the study's seed
    and the tensor's name, because torch's generators differ between CPU and GPU.
    """
    shapes = {tensor.name: tensor.shape for tensor in manifest.tensors}
    vector = np.zeros(manifest.numel, dtype=np.float32)
    for tensor, place in manifest.slices():
        if _ZERO.search(tensor.name):
            continue
        if _ONE.search(tensor.name) or _MAGNITUDE.search(tensor.name):
            vector[place] = 1.0  # a magnitude's true beginning is in `Adapter.initial`
            continue
        key = hashlib.sha256(f"adapter\0{seed}\0{tensor.name}".encode()).digest()[:16]
        draw = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
        if _NORMAL.search(tensor.name):
            vector[place] = draw.standard_normal(tensor.numel, dtype=np.float32)
            continue
        if _EMBEDDING.match(tensor.name):
            draws = draw.standard_normal(tensor.numel, dtype=np.float32)
            direct = tensor.name == "prompt_embeddings"
            vector[place] = draws * _PROMPT_SPREAD if direct else draws
            continue
        shape = tensor.shape
        if tensor.name.endswith(".bias"):  # as wide as its matrix's rows
            shape = shapes[tensor.name.removesuffix("bias") + "weight"]
        bound = 1.0 / math.sqrt(math.prod(shape[1:]) or 1)
        uniform = draw.random(tensor.numel, dtype=np.float32)
        vector[place] = (uniform * np.float32(2.0) - np.float32(1.0)) * np.float32(bound)
    return vector


def tensors_of(vector: Vector, manifest: AdapterManifest) -> dict[str, Vector]:
    """The flat vector as named arrays (views, no copy)."""
    return {tensor.name: vector[place].reshape(tensor.shape) for tensor, place in manifest.slices()}
