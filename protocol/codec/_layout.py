"""A part of an adapter as an adapter of its own: fewer tensors, or LoRA pairs of a smaller rank.

FFA-LoRA and RoLoRA train one factor, so only that one travels; a small hospital trains the first
r' directions of each pair. LoRA's rank is dimension 0 of `...lora_A.weight` [r, in] and dimension
1 of `...lora_B.weight` [out, r] (PEFT's names). With a smaller rank the scale alpha / r must stay
the study's: PEFT's alpha is then alpha * r' / r.
"""

from collections.abc import Iterator, Set
from typing import Final, Literal

import numpy as np

from ..errors import ProtocolError
from ..manifest import AdapterManifest, TensorSpec
from ._base import Vector

Factor = Literal["A", "B"]

_SUFFIX: Final[dict[Factor, str]] = {"A": ".lora_A.weight", "B": ".lora_B.weight"}
_CONTROL: Final = "~control"  # sorts after every name PEFT gives
_MERGE: Final = "~merge."  # and this after both
_RANK_AXIS: Final[dict[Factor, int]] = {"A": 0, "B": 1}


def factor_of(tensor: TensorSpec) -> Factor | None:
    """Which LoRA factor a tensor is, or None."""
    for factor, suffix in _SUFFIX.items():
        if tensor.name.endswith(suffix) and len(tensor.shape) == 2:
            return factor
    return None


def module_of(tensor: TensorSpec) -> str:
    """The module a LoRA factor belongs to: its name without the suffix."""
    factor = factor_of(tensor)
    return tensor.name.removesuffix(_SUFFIX[factor]) if factor else tensor.name


def trained_part(manifest: AdapterManifest, factors: Set[Factor]) -> AdapterManifest:
    """The tensors that train when only `factors` do: those, and all that are not LoRA factors.

    Raises:
        ProtocolError: nothing is left.
    """
    frozen = {"A", "B"} - set(factors)
    kept = tuple(tensor for tensor in manifest.tensors if factor_of(tensor) not in frozen)
    if not kept:
        raise ProtocolError(f"the adapter has no factor {' or '.join(sorted(factors))}")
    return AdapterManifest(tensors=kept)


def with_rank(manifest: AdapterManifest, rank: int) -> AdapterManifest:
    """The layout with every LoRA pair cut to at most `rank`."""

    def cut(tensor: TensorSpec) -> TensorSpec:
        factor = factor_of(tensor)
        if factor is None:
            return tensor
        shape = list(tensor.shape)
        shape[_RANK_AXIS[factor]] = min(rank, shape[_RANK_AXIS[factor]])
        return TensorSpec(name=tensor.name, shape=tuple(shape))

    return AdapterManifest(tensors=tuple(cut(tensor) for tensor in manifest.tensors))


def of_rank(manifest: AdapterManifest, rank: int) -> AdapterManifest:
    """The layout with every LoRA pair of exactly `rank`: a study's, from that of a smaller site."""

    def resize(tensor: TensorSpec) -> TensorSpec:
        factor = factor_of(tensor)
        if factor is None:
            return tensor
        shape = list(tensor.shape)
        shape[_RANK_AXIS[factor]] = rank
        return TensorSpec(name=tensor.name, shape=tuple(shape))

    return AdapterManifest(tensors=tuple(resize(tensor) for tensor in manifest.tensors))


def with_merges(manifest: AdapterManifest, rank: int) -> AdapterManifest:
    """The layout of an adapter followed by changes of the base weights, b @ a of `rank` a module.

    Their tensors are `~merge.MODULE.a` [rank, in] and `~merge.MODULE.b` [out, rank].
    """
    extra = []
    for tensor in manifest.tensors:
        factor = factor_of(tensor)
        if factor is not None:
            shape = list(tensor.shape)
            shape[_RANK_AXIS[factor]] = rank
            name = f"{_MERGE}{module_of(tensor)}.{factor.lower()}"
            extra.append(TensorSpec(name=name, shape=tuple(shape)))
    return AdapterManifest(tensors=(*manifest.tensors, *extra))


def with_control(manifest: AdapterManifest) -> AdapterManifest:
    """The layout of an adapter followed by a SCAFFOLD control variate of the same length."""
    control = TensorSpec(name=_CONTROL, shape=(manifest.numel,))
    return AdapterManifest(tensors=(*manifest.tensors, control))


def join_control(vector: Vector, control: Vector) -> Vector:
    """An adapter or its change, then a control variate or its change: float32 [2n]."""
    return np.concatenate([vector, control])


def split_control(joined: Vector) -> tuple[Vector, Vector]:
    """The two halves of what `join_control` made, as views."""
    half = joined.size // 2
    return joined[:half], joined[half:]


def narrow(vector: Vector, manifest: AdapterManifest, part: AdapterManifest) -> Vector:
    """The values of `vector` (laid out by `manifest`) that `part` holds, as float32 [part.numel].

    Raises:
        ProtocolError: `part` is not a part of `manifest`.
    """
    values = np.empty(part.numel, np.float32)
    for where, whole, shape, cut in _matches(part, manifest):
        source = vector[whole].reshape(shape)
        values[where] = source[cut].reshape(-1)
    return values


def widen(values: Vector, part: AdapterManifest, manifest: AdapterManifest) -> Vector:
    """`values` (laid out by `part`) in their places of float32 [manifest.numel], zero elsewhere.

    Raises:
        ProtocolError: `part` is not a part of `manifest`.
    """
    vector = np.zeros(manifest.numel, np.float32)
    for where, whole, shape, cut in _matches(part, manifest):
        target = vector[whole].reshape(shape)
        target[cut] = values[where].reshape(target[cut].shape)
    return vector


def _matches(
    part: AdapterManifest, manifest: AdapterManifest
) -> Iterator[tuple[slice, slice, tuple[int, ...], tuple[slice, ...]]]:
    """For each tensor of `part`: its place there, its place in the whole, the whole's shape, and
    the cut of the whole that it is."""
    places = {tensor.name: (tensor, where) for tensor, where in manifest.slices()}
    for tensor, where in part.slices():
        if tensor.name not in places:
            raise ProtocolError(f"the adapter has no tensor {tensor.name!r}")
        whole, place = places[tensor.name]
        factor = factor_of(whole)
        fits = len(tensor.shape) == len(whole.shape) and all(
            small == large or (factor is not None and axis == _RANK_AXIS[factor] and small < large)
            for axis, (small, large) in enumerate(zip(tensor.shape, whole.shape, strict=False))
        )
        if not fits:
            raise ProtocolError(f"{tensor.name}: {tensor.shape} is no part of {whole.shape}")
        yield where, place, whole.shape, tuple(slice(0, size) for size in tensor.shape)
