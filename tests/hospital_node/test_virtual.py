"""Prompt, p-tuning and prefix: trained positions before each sequence, as stock PEFT has them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from pydantic import ValidationError

from fedward.embedded.model import WEIGHTS
from hospital_node.outbound import TENSOR_NAME
from hospital_node.trainer.adapter import initial, tensors_of
from hospital_node.trainer.data import Row
from hospital_node.trainer.errors import Refusal
from hospital_node.trainer.model import Resident, Shelf
from hospital_node.trainer.tokens import TokenSet, tokenize_rows
from hospital_node.trainer.training import Plan, response_loss, train
from protocol.messages import Task
from protocol.study import AdapterSettings
from server.adapter import write_adapter

from .lab import SiteFolder, request, study
from .test_adapter import base
from .test_model import sequences, settings
from .test_tasks import Lab

BASES = ["llama", "gpt2", "qwen2"]
KINDS: dict[str, dict[str, Any]] = {
    "prompt": {"kind": "prompt"},
    "p-tuning": {"kind": "p-tuning"},
    "p-tuning-wide": {"kind": "p-tuning", "encoder_hidden_size": 48},
    "prefix": {"kind": "prefix"},
    "prefix-encoder": {"kind": "prefix", "encoder_hidden_size": 48},
}
every_kind = pytest.mark.parametrize("asked", KINDS.values(), ids=KINDS)
TOKENS = sequences(5, 30, 12, 9)


def adapter_settings(asked: dict[str, Any]) -> AdapterSettings:
    """Six virtual tokens."""
    return AdapterSettings.model_validate({"virtual_tokens": 6} | asked)


def ready(
    folder: Path, tmp_path: Path, asked: dict[str, Any], quantization: str = "none"
) -> Resident:
    """A tiny model with such an adapter, drawn from seed 7, and no dropout."""
    made = Shelf(SiteFolder(tmp_path, folder).settings()).get(settings(quantization))
    for module in made.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    adapter = made.use(adapter_settings(asked))
    adapter.load(adapter.initial(7))
    return made


def stock_loss(model: Any, tokens: TokenSet) -> torch.Tensor:
    """Stock PEFT's logits for each sequence alone; the summed loss of the response tokens."""
    total = torch.zeros(())
    for row in range(len(tokens)):
        sequence, prompt = tokens[row]
        ids = torch.from_numpy(sequence.astype(np.int64)).view(1, -1)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        logits = logits[len(logits) - len(sequence) :]  # a prompt's own places come first
        total = total + torch.nn.functional.cross_entropy(
            logits[prompt - 1 : -1], ids[0, prompt:], reduction="sum"
        )
    return total


@pytest.mark.parametrize("kind", BASES)
@every_kind
def test_loss_and_gradient_are_stock_pefts(
    bases: Callable[[str], Path], tmp_path: Path, kind: str, asked: dict[str, Any]
) -> None:
    """Packed or padded, the numbers are those of PEFT's own forward pass on each sequence alone."""
    made = ready(bases(kind), tmp_path, asked)
    assert made.adapter is not None
    assert made.shortcut
    assert made.packing == (asked["kind"] != "prefix")
    stock_loss(made.model, TOKENS).backward()
    expected = float(stock_loss(made.model, TOKENS).detach())
    wanted = [p.grad.clone() for p in made.adapter.parameters if p.grad is not None]
    assert len(wanted) == len(made.adapter.parameters)
    for packing in {made.packing, False}:
        made.packing = packing
        made.model.zero_grad()
        loss = response_loss(made, made.collate(TOKENS, np.arange(4)))
        loss.backward()
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
        for parameter, gradient in zip(made.adapter.parameters, wanted, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", BASES)
@every_kind
def test_stock_peft_loads_the_finished_adapter(
    bases: Callable[[str], Path], tmp_path: Path, kind: str, asked: dict[str, Any]
) -> None:
    """What the aggregator writes gives stock PEFT the losses that the trainer had."""
    made = ready(bases(kind), tmp_path, asked)
    adapter = made.adapter
    assert adapter is not None
    random = np.random.default_rng(0).normal(0, 0.5, adapter.manifest.numel)
    vector = adapter.initial(7) + random.astype(np.float32)
    adapter.load(vector)
    np.testing.assert_array_equal(adapter.read(), vector)
    whole = study(adapter={"virtual_tokens": 6} | asked)
    folder = write_adapter(tmp_path, whole, adapter.manifest, vector)
    stock = peft.PeftModel.from_pretrained(base(bases(kind)), str(folder)).eval()
    with torch.no_grad():
        theirs = float(stock_loss(stock, TOKENS))
        ours = float(response_loss(made, made.collate(TOKENS, np.arange(4))))
        adapter.load(adapter.initial(7))
        before = float(response_loss(made, made.collate(TOKENS, np.arange(4))))
    assert theirs == pytest.approx(ours, rel=1e-5)
    assert abs(ours - before) > 10 * abs(ours - theirs) + 1e-4


@every_kind
def test_names_pass_the_door_and_others_do_not(
    bases: Callable[[str], Path], tmp_path: Path, asked: dict[str, Any]
) -> None:
    """The layout has PEFT's names, all of which may leave; and no other name of an encoder."""
    made = ready(bases("llama"), tmp_path, asked)
    assert made.adapter is not None
    names = [tensor.name for tensor in made.adapter.manifest.tensors]
    assert all(TENSOR_NAME.fullmatch(name) for name in names)
    assert (names == ["prompt_embeddings"]) == (
        "encoder_hidden_size" not in asked and asked["kind"] != "p-tuning"
    )
    for stranger in (
        "prompt_embeddings.weight",
        "prompt_encoder.embedding.bias",
        "prompt_encoder.mlp_head.1.weight",
        "prompt_encoder.default.embedding.weight",
        "prompt_encoder.lstm_head.weight_ih_l0",
        "my_prompt_embeddings",
    ):
        assert not TENSOR_NAME.fullmatch(stranger)


@every_kind
def test_the_first_adapter_is_the_same_everywhere(
    bases: Callable[[str], Path], tmp_path: Path, asked: dict[str, Any]
) -> None:
    """It follows from seed and names, in every quantization; biases are as wide as PEFT's."""
    layouts = {
        quantization: ready(bases("llama"), tmp_path / quantization, asked, quantization)
        for quantization in ("none", "nf4", "int8")
    }
    manifests = [made.adapter.manifest for made in layouts.values() if made.adapter is not None]
    assert len({manifest.digest for manifest in manifests}) == 1
    first = initial(manifests[0], 7)
    np.testing.assert_array_equal(first, initial(manifests[2], 7))
    assert not np.array_equal(first, initial(manifests[0], 8))
    for name, values in tensors_of(first, manifests[0]).items():
        if name.endswith(".bias"):
            matrix = tensors_of(first, manifests[0])[name.removesuffix("bias") + "weight"]
            assert np.abs(values).max() <= matrix.shape[1] ** -0.5


@every_kind
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_each_learns_on_each_base(tmp_path: Path, asked: dict[str, Any], quantization: str) -> None:
    """The embedded model learns to give one answer whatever it is asked, however it is held."""
    made = ready(WEIGHTS, tmp_path, asked, quantization)
    assert made.adapter is not None
    rows = [Row(f"what helps with {word}", "", "no fever today") for word in "abcdefgh"]
    tokens = tokenize_rows(made.tokenizer, "alpaca", rows, 128)
    rate = 0.1 if asked == KINDS["prefix"] else 0.005
    plan = Plan(batch_size=8, learning_rate=rate, weight_decay=0.0, max_grad_norm=1.0, seed=0)
    order = np.tile(np.arange(8), 40)
    losses = train(made, made.adapter, tokens, order, plan, lambda *_: None).losses
    assert losses[-1] < 0.8 * losses[0]


def test_kinds_take_turns_on_one_base(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """A LoRA study after prompt and prefix finds the base untouched, and it was loaded once."""
    made = ready(bases("llama"), tmp_path, KINDS["prompt"])
    ids = torch.arange(3, 15).view(1, -1)
    made.use(adapter_settings(KINDS["prefix"]))
    lora = made.use(AdapterSettings(rank=4))
    lora.load(lora.initial(0))
    with torch.no_grad():
        torch.testing.assert_close(
            made.model.eval()(ids).logits, base(bases("llama"))(ids).logits, rtol=0, atol=0
        )
    assert made.packing


def test_a_prefix_is_never_computed_twice(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """Recomputing layers would lose a prefix: it is switched off for it, and not switched on."""
    made = ready(bases("llama"), tmp_path, KINDS["prompt"])
    assert made.checkpoint()
    before = float(response_loss(made, made.collate(TOKENS, np.arange(4))).detach())
    assert before > 0
    made.use(adapter_settings(KINDS["prefix"]))
    assert not made.checkpointing
    assert not made.checkpoint()


def test_a_round_at_a_site(site: SiteFolder) -> None:
    """Prepare, train and evaluate answer for p-tuning as for LoRA, and rank limits do not apply."""
    asked = study(adapter={"kind": "p-tuning", "virtual_tokens": 5})
    lab = Lab(site, extra="[limits]\nmax_rank = 2\n")
    described = lab.prepare(asked)
    first = initial(described.manifest, asked.seed)
    answer, delta = lab.train(asked, first, 1)
    assert answer.reply.training is not None
    assert np.abs(delta).max() > 0
    assert lab.ask(request(Task.PREPARE, asked)).reply.evaluation is not None


def test_more_virtual_tokens_than_the_base_has_places(site: SiteFolder) -> None:
    """A sentence with the numbers, and not an index error inside of the model."""
    asked = study(adapter={"kind": "prompt", "virtual_tokens": 510})
    with pytest.raises(Refusal, match="virtual_tokens = 510 leaves no room: the base has 512"):
        Lab(site).prepare(asked)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"adapter": {"kind": "prompt", "dropout": 0.1}}, "adapter.dropout = 0.1 is about"),
        ({"adapter": {"kind": "prefix", "target_modules": ["q_proj"]}}, "target_modules"),
        ({"adapter": {"kind": "lora", "encoder_hidden_size": 8}}, "'lora' has no encoder"),
        ({"adapter": {"kind": "prompt", "encoder_hidden_size": 8}}, "'prompt' has no encoder"),
        *(
            ({"adapter": {"kind": kind}, "aggregation": {"lora": lora}}, "needs 'factors'")
            for kind in ("prompt", "p-tuning", "prefix")
            for lora in ("flexlora", "ffa", "rolora", "fedex", "flora")
        ),
    ],
)
def test_what_does_not_fit_is_refused_at_submission(changes: dict[str, Any], sentence: str) -> None:
    """With a sentence that names the setting."""
    with pytest.raises(ValidationError, match=sentence):
        study(**changes)
