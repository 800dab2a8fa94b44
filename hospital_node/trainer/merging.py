"""FedEx-LoRA and FLoRA: what a round adds to this site's copy of the base weights."""

from typing import Any

import numpy as np
import torch

from protocol.codec import with_merges
from protocol.messages import Merges
from protocol.states import Reason

from .adapter import Vector
from .errors import Refusal
from .model import Resident


def merge(resident: Resident, merges: Merges, values: Vector) -> None:
    """Add `values` (float32, as `with_merges` lays them out) to the base: W += scale * b @ a.

    A round that is asked again finds its change done already.

    Raises:
        Refusal: this base is not the one that the change is for.
    """
    state = resident.changed or resident.sha256
    if state == merges.after:
        return
    if state != merges.before:
        raise Refusal(Reason.NOT_HELD, "the base here is not the one that the change is for")
    assert resident.adapter is not None
    whole = resident.adapter.manifest
    place, factors = 0, {}
    if merges.rank:
        for tensor in with_merges(whole, merges.rank).tensors[len(whole.tensors) :]:
            end = place + tensor.numel
            factors[tensor.name] = values[place:end].reshape(tensor.shape)
            place = end
    resident.changed = merges.before  # if it fails half-way, the base is read again
    try:
        for name in factors:
            if name.endswith(".a"):
                module = name.removeprefix("~merge.").removesuffix(".a")
                _add(resident.model, module, factors[name[:-1] + "b"], factors[name])
    except BaseException:
        resident.changed = "half-way"
        raise
    resident.changed = merges.after


def _add(model: Any, module: str, b: Vector, a: Vector) -> None:
    layer = model.get_submodule(module)
    weight = layer.get_base_layer().weight
    if not weight.is_floating_point():
        raise Refusal(Reason.SITE_FORBIDS, "a quantized base cannot be added to")
    with torch.no_grad():
        left, right = (torch.from_numpy(np.array(part)).to(weight.device) for part in (b, a))
        change = layer.scaling["default"] * (left @ right)
        # GPT-2's Conv1D keeps its weight as [in, out].
        weight.add_((change.T if layer.fan_in_fan_out else change).to(weight.dtype))
