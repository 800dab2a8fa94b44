"""A model's keyword arguments for a batch, with what the adapter adds before each sequence.

PEFT's own `forward` does the same for padded batches (a test holds the two together), but hands
back logits for every token and knows no packed rows.
"""

from typing import Any

import torch

from .batches import Batch


def inputs_of(model: Any, batch: Batch, kind: str) -> dict[str, Any]:
    """The arguments for the base inside `model` (a PEFT model, or a base without an adapter).

    Args:
        kind: the adapter's, as `AdapterSettings` has it; empty for none.
    """
    inputs: dict[str, Any] = {"input_ids": batch.ids, "use_cache": False}
    if batch.layout is None:
        inputs["attention_mask"] = batch.mask
    else:
        # A mask of four dimensions is taken as it is; without one, transformers would build a
        # square of tokens x tokens from the positions. The layout goes through the layers to
        # `attend`.
        inputs["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.ids.device)
        inputs |= {"position_ids": batch.positions, "layout": batch.layout}
    if batch.virtual is not None:
        del inputs["input_ids"]
        inputs["inputs_embeds"] = _embeddings(model, batch.ids, batch.virtual)
    if kind == "prefix":
        sequences = len(batch.ids)
        inputs["past_key_values"] = model.get_prompt(sequences)
        if batch.mask is not None:
            seen = batch.mask.new_ones(sequences, model.active_peft_config.num_virtual_tokens)
            inputs["attention_mask"] = torch.cat([seen, batch.mask], dim=1)
    return inputs


def _embeddings(model: Any, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The tokens' embeddings, with the trained ones at the flat `places`."""
    embeddings: torch.Tensor = model.get_base_model().get_input_embeddings()(ids)
    prompt = model.get_prompt(1)[0].to(embeddings.dtype)  # (virtual, width)
    trained = prompt.repeat(len(places) // len(prompt), 1)
    return embeddings.flatten(0, 1).index_copy(0, places, trained).view_as(embeddings)
