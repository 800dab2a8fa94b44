"""Reading a base model and its tokenizer from files, with errors for the site's person."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from protocol.states import Reason
from protocol.study import ModelSettings, Quantization

from . import attention
from .errors import Refusal


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer beside the weights.

    Raises:
        Refusal: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        # Whatever the library raises, the site's person needs one sentence.
        raise Refusal(
            Reason.MODEL_UNREADABLE,
            f"{folder}: no readable tokenizer ({type(error).__name__}): {_first_line(error)}",
        ) from error


def load_base(
    folder: Path,
    wanted: ModelSettings,
    dtype: torch.dtype,
    device: torch.device,
    *,
    prepared: bool = False,
) -> Any:
    """Read and quantize the base; frozen, in evaluation mode.

    Args:
        prepared: the files hold a base that is quantized already.

    Raises:
        Refusal: it cannot be read.
        torch.OutOfMemoryError, MemoryError: it does not fit.
    """
    from transformers import AutoModelForCausalLM

    # Even a None would stand in the place of what a prepared base says of itself.
    how = {} if prepared else {"quantization_config": _quantization(wanted, dtype)}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            **how,
            dtype=dtype,
            device_map={"": str(device)},
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and "allocate memory" in str(error):
            raise
        raise Refusal(
            Reason.MODEL_UNREADABLE,
            f"{folder}: not a causal language model that can be loaded "
            f"({type(error).__name__}): {_first_line(error)}",
        ) from error
    attention.register()
    model.requires_grad_(False)
    model.eval()
    for module in model.modules():
        # On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks 4-bit weights at the first forward
        # pass in evaluation mode, for a kernel without a gradient: whoever evaluates before
        # training then trains on gradients that stop at the last layer, without an error.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _quantization(wanted: ModelSettings, dtype: torch.dtype) -> Any:
    """QLoRA's settings (arXiv 2305.14314, section 3) for bitsandbytes; None for no quantization."""
    from transformers import BitsAndBytesConfig

    if wanted.quantization is Quantization.NONE:
        return None
    if wanted.quantization is Quantization.INT8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=wanted.quantization.value,
        bnb_4bit_use_double_quant=wanted.double_quantization,
        bnb_4bit_compute_dtype=dtype,
    )


def _first_line(error: Exception) -> str:
    lines: Sequence[str] = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"
