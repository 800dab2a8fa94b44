"""The adapter: one flat vector, PEFT's own names, the same beginning everywhere."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import save_file

from hospital_node.outbound import TENSOR_NAME
from hospital_node.trainer.adapter import attach, detach, initial, tensors_of
from hospital_node.trainer.errors import Refusal
from hospital_node.trainer.model import Shelf, load_base
from hospital_node.trainer.training import Plan, train
from protocol.manifest import AdapterManifest, TensorSpec
from protocol.study import AdapterSettings, ModelSettings
from server.adapter import write_adapter

from .lab import SiteFolder, study
from .test_model import sequences

CPU = torch.device("cpu")
KINDS = ["llama", "gpt2", "qwen2"]


def base(folder: Path, quantization: str = "none") -> torch.nn.Module:
    """A tiny base model, frozen."""
    wanted = ModelSettings(base="any", quantization=quantization)
    loaded: torch.nn.Module = load_base(folder, wanted, torch.float32, CPU)
    return loaded


@pytest.mark.parametrize("kind", KINDS)
def test_stock_peft_loads_what_we_write(
    bases: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    """A vector saved under the manifest's names gives stock PEFT the model that we had."""
    settings = AdapterSettings(rank=4, alpha=8)
    model, adapter = attach(base(bases(kind)), settings)
    vector = np.random.default_rng(0).normal(0, 0.1, adapter.manifest.numel).astype(np.float32)
    adapter.load(vector)
    np.testing.assert_array_equal(adapter.read(), vector)
    model.peft_config["default"].save_pretrained(str(tmp_path))
    save_file(tensors_of(vector, adapter.manifest), tmp_path / "adapter_model.safetensors")
    stock = peft.PeftModel.from_pretrained(base(bases(kind)), str(tmp_path)).eval()
    ids = torch.arange(3, 15).view(1, -1)
    with torch.no_grad():
        torch.testing.assert_close(stock(ids).logits, model.eval()(ids).logits, rtol=0, atol=0)
        plain = base(bases(kind))(ids).logits
    assert not torch.allclose(plain, model(ids).logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "ia3"])
def test_stock_peft_loads_what_the_aggregator_writes(
    bases: Callable[[str], Path], tmp_path: Path, kind: str, method: str
) -> None:
    """For each kind of adapter the finished folder gives stock PEFT the model that was trained."""
    asked = study(adapter={"kind": method, "rank": 4, "alpha": 8})
    model, adapter = attach(base(bases(kind)), asked.adapter)
    assert all(TENSOR_NAME.fullmatch(tensor.name) for tensor in adapter.manifest.tensors)
    ids = torch.arange(3, 15).view(1, -1)
    first = adapter.initial(0)
    adapter.load(first)
    with torch.no_grad():
        plain = base(bases(kind))(ids).logits
        torch.testing.assert_close(model.eval()(ids).logits, plain, atol=1e-5, rtol=1e-4)
    random = np.random.default_rng(0).normal(0, 0.1, adapter.manifest.numel).astype(np.float32)
    adapter.load(first + random)
    folder = write_adapter(tmp_path, asked, adapter.manifest, first + random)
    stock = peft.PeftModel.from_pretrained(base(bases(kind)), str(folder)).eval()
    with torch.no_grad():
        theirs, ours = stock(ids).logits, model.eval()(ids).logits
    torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(ours, plain, atol=1e-4)


@pytest.mark.parametrize("method", ["rslora", "dora", "ia3"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_every_kind_learns(
    bases: Callable[[str], Path], tmp_path: Path, method: str, quantization: str
) -> None:
    """On the plain and on the 4-bit base, packed, the loss on repeated rows falls."""
    wanted = ModelSettings(base="any", quantization=quantization)
    made = Shelf(SiteFolder(tmp_path, bases("llama")).settings()).get(wanted)
    adapter = made.use(study(adapter={"kind": method, "rank": 4, "alpha": 8}).adapter)
    adapter.load(adapter.initial(0))
    assert made.packing
    rate = 0.1 if method == "ia3" else 0.02
    plan = Plan(batch_size=4, learning_rate=rate, weight_decay=0.0, max_grad_norm=1.0, seed=0)
    rows = np.tile(np.arange(4), 12)
    losses = train(made, adapter, sequences(8, 12, 9, 10), rows, plan, lambda *_: None).losses
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_quantization_does_not_change_the_layout(bases: Callable[[str], Path], kind: str) -> None:
    """Sites with other hardware and quantization build the same manifest."""
    digests = {
        attach(base(bases(kind), quantization), AdapterSettings(rank=4))[1].manifest.digest
        for quantization in ("none", "nf4", "int8")
    }
    assert len(digests) == 1


def test_the_first_adapter_changes_nothing_and_is_the_same_everywhere(
    bases: Callable[[str], Path],
) -> None:
    """B is zero, A is spread as PEFT spreads it, and the numbers depend on seed and names only."""
    model, adapter = attach(base(bases("llama")), AdapterSettings(rank=4))
    first = initial(adapter.manifest, 7)
    np.testing.assert_array_equal(first, initial(adapter.manifest, 7))
    assert not np.array_equal(first, initial(adapter.manifest, 8))
    for name, values in tensors_of(first, adapter.manifest).items():
        if "lora_B" in name:
            assert not values.any()
        else:
            bound = values.shape[1] ** -0.5
            assert np.abs(values).max() <= bound
            assert values.std() == pytest.approx(bound / 3**0.5, rel=0.15)
    adapter.load(first)
    ids = torch.arange(3, 15).view(1, -1)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, base(bases("llama"))(ids).logits)


def test_the_first_adapter_is_these_numbers() -> None:
    """Written down, so that a library or platform that would move them is noticed."""
    name = "base_model.model.h.0.lora_A.weight"
    manifest = AdapterManifest(tensors=(TensorSpec(name=name, shape=(1, 3)),))
    assert initial(manifest, 7).tolist() == [
        -0.2970729470252991,
        -0.05044311285018921,
        0.24300210177898407,
    ]


def test_taking_the_adapter_off_gives_the_base_back(bases: Callable[[str], Path]) -> None:
    """Another study's adapter settings need no reload of the base."""
    original = base(bases("llama"), "nf4")
    ids = torch.arange(3, 15).view(1, -1)
    with torch.no_grad():
        before = original(ids).logits
        model, adapter = attach(original, AdapterSettings(rank=4))
        adapter.load(np.ones(adapter.manifest.numel, np.float32))
        after = detach(model)(ids).logits
    torch.testing.assert_close(before, after)
    _, other = attach(detach(model), AdapterSettings(rank=2, target_modules=("q_proj",)))
    assert other.manifest.numel == 2 * 2 * (2 * 64)


def test_factors_can_be_frozen(bases: Callable[[str], Path]) -> None:
    """FFA-LoRA trains B alone, RoLoRA one at a time."""
    _, adapter = attach(base(bases("llama")), AdapterSettings(rank=4))
    for factors in ("A", "B"):
        trained = adapter.train_only(frozenset(factors))
        names = [
            tensor.name
            for tensor, parameter in zip(adapter.manifest.tensors, adapter.parameters, strict=True)
            if parameter.requires_grad
        ]
        assert len(names) == len(trained) == len(adapter.parameters) // 2
        assert all(f"lora_{factors}" in name for name in names)


def test_a_module_that_is_not_there_is_a_sentence(bases: Callable[[str], Path]) -> None:
    """A study written for another architecture is refused with the setting's name."""
    with pytest.raises(Refusal, match=r"adapter\.target_modules"):
        attach(base(bases("gpt2")), AdapterSettings(target_modules=("q_proj",)))


@pytest.mark.parametrize("kind", ["dora", "ia3"])
def test_what_scales_the_base_is_not_rounded_on_the_way(kind: str) -> None:
    """An 8-bit down-link of multipliers is refused at submission, with the way out."""
    with pytest.raises(ValueError, match=r"codec\.down = 'int8'.*fp32"):
        study(adapter={"kind": kind}, codec={"down": "int8"})
    with pytest.raises(ValueError, match="two factors"):
        study(adapter={"kind": kind}, aggregation={"lora": "flexlora"})
