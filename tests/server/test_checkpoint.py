"""Checkpoints and the adapter: what is written is what the libraries read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from protocol.manifest import AdapterManifest, TensorSpec
from protocol.study import StudySettings
from server.adapter import adapter_config, write_adapter
from server.aggregation import ServerState
from server.checkpoint import Checkpoint, CheckpointError, load_latest, save
from server.safetensors import SafetensorsError, dump, load

MANIFEST = AdapterManifest(
    tensors=(TensorSpec(name="m.lora_A.weight", shape=(2, 3)), TensorSpec(name="n", shape=(4,)))
)


def a_checkpoint(number: int = 1) -> Checkpoint:
    """A checkpoint with something in every field."""
    values = np.arange(10, dtype=np.float32) + number
    return Checkpoint(
        round=number,
        adapter=values,
        initial=values * 0,
        manifest=MANIFEST,
        state=ServerState("fedavgm", {"momentum": values / 3}),
        base_sha256="a" * 64,
        failed_in_a_row=2,
    )


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    """Every field survives, every bit of the vectors."""
    before = a_checkpoint()
    save(tmp_path, before)
    after = load_latest(tmp_path)
    assert after is not None
    assert (after.round, after.base_sha256, after.failed_in_a_row) == (1, "a" * 64, 2)
    assert after.manifest == MANIFEST
    np.testing.assert_array_equal(after.adapter, before.adapter)
    np.testing.assert_array_equal(after.initial, before.initial)
    np.testing.assert_array_equal(after.state.vectors["momentum"], before.state.vectors["momentum"])


def test_two_are_kept(tmp_path: Path) -> None:
    """The last two checkpoints stay."""
    for number in range(5):
        save(tmp_path, a_checkpoint(number))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint-000003.safetensors", "checkpoint-000004.safetensors"]


@pytest.mark.parametrize("damage", [lambda d: d[:50], lambda d: d[:-1] + b"\xff", lambda d: b""])
def test_damaged_one_is_passed_over(tmp_path: Path, damage: Any) -> None:
    """Where the newest is damaged, the one before it is taken."""
    save(tmp_path, a_checkpoint(1))
    path = save(tmp_path, a_checkpoint(2))
    path.write_bytes(damage(path.read_bytes()))
    found = load_latest(tmp_path)
    assert found is not None
    assert found.round == 1


def test_no_room_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk names the file, the round and what to do; the earlier checkpoint stays."""
    save(tmp_path, a_checkpoint(1))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.checkpoint.write_atomic", full)
    with pytest.raises(CheckpointError, match=r"round 2 cannot be written: No space left.*free"):
        save(tmp_path, replace(a_checkpoint(1), round=2))
    found = load_latest(tmp_path)
    assert found is not None
    assert found.round == 1


def test_safetensors_library_reads_ours() -> None:
    """Our writer and the library agree, in both directions."""
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32([1.5])}
    read = safetensors.numpy.load(dump(tensors, {"format": "pt"}))
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor)
    ours, metadata = load(safetensors.numpy.save(tensors, {"x": "y"}))
    assert metadata == {"x": "y"}
    np.testing.assert_array_equal(ours["a"], tensors["a"])


@pytest.mark.parametrize("data", [b"", b"12345678", b"\x05" + bytes(7) + b"hello", bytes(8)])
def test_other_bytes_are_refused(data: bytes) -> None:
    """Bytes that are no such file are an error of ours."""
    with pytest.raises(SafetensorsError):
        load(data)


def test_adapter_loads_in_stock_peft(tmp_path: Path) -> None:
    """`PeftModel.from_pretrained` takes the folder on the same base, weights and all."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    lora = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trained = peft.get_peft_model(transformers.LlamaForCausalLM(config), lora)
    names = sorted(peft.get_peft_model_state_dict(trained).items())
    manifest = AdapterManifest(
        tensors=tuple(TensorSpec(name=name, shape=tuple(value.shape)) for name, value in names)
    )
    adapter = np.random.default_rng(0).standard_normal(manifest.numel).astype(np.float32)
    settings = StudySettings.model_validate(
        {"name": "trial", "model": {"base": "some/base"}, "adapter": {"rank": 4, "alpha": 8}}
    )
    folder = write_adapter(tmp_path, settings, manifest, adapter)
    loaded = peft.PeftModel.from_pretrained(transformers.LlamaForCausalLM(config), str(folder))
    state = peft.get_peft_model_state_dict(loaded)
    assert sorted(state) == [name for name, _ in names]
    for spec, place in manifest.slices():
        expected = torch.from_numpy(adapter[place].reshape(spec.shape))
        torch.testing.assert_close(state[spec.name], expected, rtol=0, atol=0)


def test_config_says_what_the_study_said() -> None:
    """Rank, scale, dropout and modules are the study's."""
    settings = StudySettings.model_validate(
        {
            "name": "trial",
            "model": {"base": "some/base"},
            "adapter": {"rank": 8, "alpha": 4, "dropout": 0.1, "target_modules": ["q_proj"]},
        }
    )
    config = adapter_config(settings, MANIFEST)
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (8, 4, 0.1)
    assert config["target_modules"] == ["q_proj"]
    assert config["base_model_name_or_path"] == "some/base"
