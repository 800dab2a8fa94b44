"""The base model: read and quantized once, then resident across rounds and studies.

FlowerTune's client reads and quantizes the base in every round; here that happens once for each
(base, quantization), and `Shelf.loads` counts it.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from protocol.site import SiteSettings
from protocol.states import Reason
from protocol.study import AdapterSettings, ModelSettings

from . import attention
from .adapter import Adapter, attach, detach
from .base_files import base_hash, find_base, parameter_count
from .batches import Batch, collate, pack
from .errors import Refusal
from .inputs import inputs_of
from .loading import load_base, load_tokenizer
from .losses import token_losses
from .quantized import load_quantized
from .tokens import TokenSet

__all__ = [
    "Resident",
    "Shelf",
    "choose_device",
    "choose_dtype",
    "load_base",
    "load_tokenizer",
    "warm_up",
]

log = logging.getLogger("fedward.trainer")

# Two bases let two studies take turns without a reload; a third pushes out the one unused longest.
_RESIDENT: Final = 2
# Largest block of logits computed at once: a vocabulary of 128,256 in float32 makes 512 rows.
_LOGIT_BYTES: Final = 256 << 20


_LEAST_ROOM: Final = 8  # tokens of an example, as `training.max_length` has it


@dataclass
class Resident:
    """A quantized base in memory, with the adapter that is on it now.

    `model` is the PEFT model (or the bare base before an adapter is put on). `shortcut` says that
    hidden states times the output embedding give this architecture's logits, so that logits are
    computed only where a response token is; it is measured, because some architectures scale or
    cap them. `packing` says that several sequences in one row score as each does alone, measured
    too: an architecture that mixes tokens elsewhere than in attention, or has its own kind of
    attention, gets padded batches.
    """

    folder: Path
    sha256: str
    parameters: int
    tokenizer: Any
    model: Any
    device: torch.device
    dtype: torch.dtype
    adapter: Adapter | None = None
    shortcut: bool = False
    packing: bool = False
    adapted: bool = True  # False while the adapter is switched off
    micro_batch: int = 0  # examples in one forward pass; 0 is the whole batch (training.py)
    changed: str = ""  # what rounds have added to the base (`merging`); empty: it is as read
    checkpointing: bool = False  # activations are computed again in the backward pass

    def use(self, settings: AdapterSettings) -> Adapter:
        """The adapter of these settings; the model is touched only when they changed."""
        if self.adapter is None or self.adapter.settings != settings:
            if self.adapter is not None:
                self.model, self.adapter = detach(self.model), None
            if settings.kind == "prefix" and self.checkpointing:
                # Keys and values that a layer is given would be lost in the second computation.
                self.model.activation_checkpointing_disable()
                self.checkpointing = False
            self.model, self.adapter = attach(self.model, settings)
            self.shortcut = self._shortcut_is_right()
            self.packing = self._packing_is_right()
        return self.adapter

    @property
    def kind(self) -> str:
        """The adapter's kind; empty where there is none or it is switched off."""
        return str(self.adapter.settings.kind) if self.adapter and self.adapted else ""

    @property
    def virtual(self) -> int:
        """Trained places before each sequence; a prefix is beside them, not among them."""
        if self.adapter is None or self.kind not in {"prompt", "p-tuning"}:
            return 0
        return self.adapter.settings.virtual_tokens

    @property
    def room(self) -> int:
        """The longest sequence the base has positions for, beside the adapter's own.

        Raises:
            Refusal: the adapter leaves none.
        """
        positions = getattr(self.model.config, "max_position_embeddings", None) or 1 << 30
        settings = self.adapter.settings if self.adapter is not None else None
        taken = settings.virtual_tokens if settings is not None and settings.virtual else 0
        if positions - taken < _LEAST_ROOM:
            raise Refusal(
                Reason.SITE_FORBIDS,
                f"adapter.virtual_tokens = {taken} leaves no room: the base has {positions} places",
            )
        return int(positions) - taken

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The base alone, while this lasts."""
        with self.model.disable_adapter():
            self.adapted = False
            try:
                yield
            finally:
                self.adapted = True

    def packs(self, longest: int) -> bool:
        """Whether sequences of at most `longest` tokens go into one row without padding."""
        window = getattr(self.model.config, "sliding_window", None)
        return (
            self.packing
            and self.kind != "prefix"
            and (not window or self.virtual + longest <= window)
        )

    def collate(self, tokens: TokenSet, rows: NDArray[np.int64]) -> Batch:
        """The sequences `rows` for one forward pass: packed where that is right, else padded."""
        if self.packs(max(tokens.length(int(row)) for row in rows)):
            return pack(tokens, [[int(row)] for row in rows], self.device, self.virtual)
        return collate(tokens, rows, self.device, self.virtual)

    def autocast(self) -> torch.autocast:
        """Mixed precision on a GPU, nothing on a CPU."""
        lower = self.dtype is not torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=lower)

    def checkpoint(self) -> bool:
        """Keep a layer's input only and compute the rest again in the backward pass.

        Returns:
            False where this is done already or the architecture has no such way.
        """
        base = self.model.get_base_model()
        possible = getattr(base, "supports_gradient_checkpointing", False)
        if self.checkpointing or not possible or self.kind == "prefix":
            return False
        base.activation_checkpointing_enable({"use_reentrant": False})
        self.checkpointing = True
        return True

    def response_loss(self, batch: Batch) -> torch.Tensor:
        """Summed cross-entropy of the response tokens (nats), a float32 scalar with a gradient."""
        return self.response_losses(batch).sum()

    def response_losses(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy of each response token (nats), float32 (targets,) with a gradient.

        Logits of a whole batch (960 tokens of an 8B Llama: 0.5 GB in float32, and twice that for
        their gradient) are made in blocks; see `losses`.
        """
        with self.autocast():
            if not self.shortcut:
                logits = self.response_logits(batch).float()
                return cross_entropy(logits, batch.targets, reduction="none")
            states = _at(self._hidden(batch), batch.predictors)
            return token_losses(self._head(), states, batch.targets, self._block_rows())

    def response_logits(self, batch: Batch) -> torch.Tensor:
        """Logits that predict each response token of `batch`: (targets, vocabulary)."""
        if self.shortcut:
            hidden = self._hidden(batch)
            logits: torch.Tensor = self._head()(_at(hidden, batch.predictors))
            return logits
        return _at(self._full_logits(batch), batch.predictors)

    def response_blocks(self, batch: Batch, visit: Callable[[torch.Tensor, int], None]) -> None:
        """Call `visit(float32 logits (k, vocabulary), first target)` over all targets in blocks."""
        if not self.shortcut:
            visit(self.response_logits(batch).float(), 0)
            return
        head = self._head()
        states = _at(self._hidden(batch), batch.predictors)
        rows = self._block_rows()
        for start in range(0, states.shape[0], rows):
            visit(head(states[start : start + rows]).float(), start)

    def _block_rows(self) -> int:
        vocabulary = int(self._head().weight.shape[0])
        return max(16, _LOGIT_BYTES // (4 * vocabulary))

    def _hidden(self, batch: Batch) -> torch.Tensor:
        base = self.model.get_base_model()
        backbone = getattr(base, base.base_model_prefix)
        hidden: torch.Tensor = backbone(**inputs_of(self.model, batch, self.kind))[0]
        return hidden

    def _head(self) -> Any:
        return self.model.get_base_model().get_output_embeddings()

    def _full_logits(self, batch: Batch) -> torch.Tensor:
        base = self.model.get_base_model()  # LoRA's layers are in it; a prompt's are in the inputs
        logits: torch.Tensor = base(**inputs_of(self.model, batch, self.kind)).logits
        return logits

    def _shortcut_is_right(self) -> bool:
        """Whether the short way to the logits equals the model's own on a few tokens."""
        base = self.model.get_base_model()
        prefix = getattr(base, "base_model_prefix", "")
        if not prefix or not hasattr(base, prefix) or base.get_output_embeddings() is None:
            return False
        self.model.eval()
        ids = torch.arange(1, 9, device=self.device).view(1, 8)
        probe = Batch(ids, None, ids.view(-1) - 1, ids.view(-1), np.array([8]), 8)
        try:
            with torch.no_grad(), self.autocast():
                short = self._head()(self._hidden(probe)).float()
                full = self._full_logits(probe).float()
                # The same products in the same order differ by nothing; a soft cap on the small
                # logits of an untrained model differs by as little as 1e-4.
                return bool((short - full).abs().max() <= 1e-5 * full.abs().max())
        except (TypeError, AttributeError, RuntimeError, IndexError):
            return False

    def _packing_is_right(self) -> bool:
        """Whether a few sequences in one row score as they do one by one.

        Two prompts, one with two responses: a token that sees another sequence, or the wrong
        position, changes the logits by far more than the order of additions does. Where that
        alone differs (low precision, LLM.int8()), a padded batch shows by how much.
        """
        config = self.model.config
        possible = getattr(config, "_attn_implementation", "") in {"sdpa", attention.NAME}
        if not possible or self.kind == "prefix":
            return False
        config._attn_implementation = attention.NAME
        self.model.eval()
        ids = np.array([1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 8, 9, 4, 3, 2, 1, 5, 6], dtype=np.int32)
        probe = TokenSet(ids, np.array([0, 5, 10, 18]), np.array([3, 3, 4], dtype=np.int32), 0)
        where = (self.device, self.virtual)
        try:
            with torch.no_grad(), self.autocast():
                alone = torch.cat([
                    self.response_logits(collate(probe, [row], *where)).float()
                    for row in range(3)
                ])  # fmt: skip
                padded = self.response_logits(collate(probe, [0, 1, 2], *where)).float()
                packed = self.response_logits(pack(probe, [[0, 1], [2]], *where)).float()
            exact = self.dtype is torch.float32
            noise = float((padded - alone).abs().max())
            allowed = (1e-5 if exact else 1e-2) * float(alone.abs().max())
            right = float((packed - alone).abs().max()) <= max(4 * noise, allowed)
        except (TypeError, ValueError, AttributeError, RuntimeError, IndexError):
            right = False
        if not right:
            config._attn_implementation = "sdpa"
            log.info("%s cannot be packed; its batches are padded", type(config).__name__)
        return right


def _at(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """`states` (rows, tokens, width) at flat `places`: (places, width)."""
    return states.flatten(0, 1).index_select(0, places)


class Shelf:
    """The resident base models of this process."""

    def __init__(self, site: SiteSettings, *, index: int = 0) -> None:
        """`index` is the GPU's among several."""
        self.site = site
        self.device = choose_device(site.trainer.device)
        self._index = index
        if index and self.device.type == "cuda":
            self.device = torch.device("cuda", index)
            torch.cuda.set_device(self.device)
        self.loads = 0
        self._kept: dict[tuple[object, ...], Resident] = {}

    @property
    def residents(self) -> tuple[Resident, ...]:
        """The bases in memory, the one used last at the end."""
        return tuple(self._kept.values())

    def get(self, wanted: ModelSettings, *, base: Sequence[str] = ()) -> Resident:
        """The base that a study asks for, loaded if it is not resident yet.

        `base` are the states that will do of one that rounds have added to; none: as it was read.

        Raises:
            Refusal: no such base, other weights than the study or the site names, or a
                quantization this site does not allow.
            torch.OutOfMemoryError, MemoryError, RuntimeError: it does not fit, even alone.
        """
        limits = self.site.limits
        if wanted.quantization not in limits.quantization:
            raise Refusal(
                Reason.SITE_FORBIDS,
                f"model.quantization = {wanted.quantization.value!r} is not among this site's "
                f"limits.quantization = {[kind.value for kind in limits.quantization]}",
            )
        folder = find_base(wanted.base, self.site.model)
        sha256 = base_hash(folder, self.site.model.cache)
        for owner, expected in (("study", wanted.sha256), ("site", self.site.model.sha256)):
            if expected is not None and expected != sha256:
                raise Refusal(
                    Reason.MODEL_MISMATCH,
                    f"{folder}: the weights hash to {sha256}, the {owner}'s model.sha256 is "
                    f"{expected}",
                )
        dtype = choose_dtype(wanted, self.device)
        key = (folder.resolve(), sha256, wanted.quantization, wanted.double_quantization, dtype)
        resident = self._kept.pop(key, None)
        if resident is None or (resident.changed and resident.changed not in base):
            resident = None  # let go of it first: two do not fit
            resident = self._load(folder, sha256, wanted, dtype)
        self._kept[key] = resident  # last in order: used last
        while len(self._kept) > _RESIDENT:
            self._drop_oldest()
        return resident

    def _load(
        self, folder: Path, sha256: str, wanted: ModelSettings, dtype: torch.dtype
    ) -> Resident:
        log.info("loading %s (%s) on %s", folder, wanted.quantization.value, self.device)
        tokenizer = load_tokenizer(folder)
        parameters = parameter_count(folder)
        while True:
            try:
                model = load_quantized(
                    folder, sha256, wanted, dtype, self.device, self.site.model.cache,
                    keep=self._index == 0,
                )  # fmt: skip
                break
            except (torch.OutOfMemoryError, MemoryError):
                if not self._kept:
                    raise
                self._drop_oldest()
        self.loads += 1
        return Resident(folder, sha256, parameters, tokenizer, model, self.device, dtype)

    def _drop_oldest(self) -> None:
        del self._kept[next(iter(self._kept))]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def warm_up() -> None:
    """Import what a load needs: some 5 s on a slow core, better spent before a request waits."""
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    from transformers import (  # noqa: F401
        AutoModelForCausalLM,
        AutoTokenizer,
        BitsAndBytesConfig,
    )


def choose_device(asked: str) -> torch.device:
    """The device to train on; `auto` takes a CUDA GPU if there is one.

    Raises:
        Refusal: cuda is asked for and not there.
    """
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise Refusal(
            Reason.SITE_FORBIDS,
            'trainer.device = "cuda", but torch sees no CUDA GPU; install the driver and a CUDA '
            'build of torch, or use "auto" or "cpu"',
        )
    return torch.device("cuda" if asked != "cpu" and available else "cpu")


def choose_dtype(wanted: ModelSettings, device: torch.device) -> torch.dtype:
    """The type that matrices are multiplied in."""
    if wanted.compute_dtype != "auto":
        return {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
        }[wanted.compute_dtype]
    modern = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if modern else torch.float32
