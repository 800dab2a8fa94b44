"""The quantized base on disk: the same numbers, and never a damaged one."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hospital_node.trainer import quantized
from hospital_node.trainer.model import Resident, Shelf
from hospital_node.trainer.training import response_loss
from protocol.study import AdapterSettings

from .lab import SiteFolder
from .test_model import sequences, settings

TOKENS = sequences(5, 30, 12, 9)


def start(site: SiteFolder, quantization: str = "nf4", **changes: object) -> Resident:
    """The base as a trainer that has just started reads it."""
    return Shelf(site.settings()).get(settings(quantization, **changes))


def numbers(made: Resident) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the bare base, and the gradient of a fresh adapter on it."""
    with torch.no_grad():
        logits = made.model(torch.arange(3, 15).view(1, -1)).logits
    adapter = made.use(AdapterSettings(rank=4))
    adapter.load(adapter.initial(0))
    response_loss(made, made.collate(TOKENS, [0, 1, 2, 3])).backward()
    gradients = [p.grad.flatten() for p in adapter.parameters if p.grad is not None]
    return logits, torch.cat(gradients)


def places(site: SiteFolder) -> list[Path]:
    """The folders in the cache."""
    return sorted(site.settings().model.cache.glob("quantized-*"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry a load of a base: whether it was a prepared one."""
    seen: list[bool] = []
    load = quantized.load_base

    def noting(*arguments: object, prepared: bool = False) -> object:
        seen.append(prepared)
        return load(*arguments, prepared=prepared)  # type: ignore[arg-type]

    monkeypatch.setattr(quantized, "load_base", noting)
    return seen


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize(
    ("quantization", "double"), [("nf4", True), ("nf4", False), ("fp4", True), ("int8", True)]
)
def test_the_second_start_has_the_same_bits(
    bases: Callable[[str], Path],
    tmp_path: Path,
    asked: list[bool],
    kind: str,
    quantization: str,
    double: bool,
) -> None:
    """From the cache, logits and an adapter's gradient are equal to the last bit."""
    site = SiteFolder(tmp_path, bases(kind))
    first = numbers(start(site, quantization, double_quantization=double))
    second = numbers(start(site, quantization, double_quantization=double))
    assert asked == [False, True]
    for ours, theirs in zip(first, second, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert not list(places(site)[0].parent.glob(".quantized-*"))


def test_a_base_that_is_not_quantized_is_not_copied(site: SiteFolder) -> None:
    """It lies on the disk already."""
    start(site, "none")
    assert places(site) == []


@pytest.mark.parametrize("harm", ["cut", "flip", "add", "key", "no manifest", "not json"])
def test_a_damaged_file_is_found_and_made_anew(
    site: SiteFolder, asked: list[bool], harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Truncated, tampered with, or without its manifest: quantized again, and good after that."""
    expected = numbers(start(site))
    (place,) = places(site)
    weights, manifest = place / "model.safetensors", place / "manifest.json"
    data = weights.read_bytes()
    if harm == "cut":
        weights.write_bytes(data[:-100])
    elif harm == "flip":
        weights.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    elif harm == "add":
        (place / "adapter_model.safetensors").write_bytes(b"more")
    elif harm == "key":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"key": "0" * 64}))
    elif harm == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("[")
    for ours, theirs in zip(numbers(start(site)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert "quantized again" in caplog.text
    start(site)
    assert asked == [False, False, True]


def test_another_base_or_setting_is_another_folder(
    bases: Callable[[str], Path], tmp_path: Path, asked: list[bool]
) -> None:
    """Weights, configuration and quantization all count; the two used last are kept."""
    import shutil

    folder = tmp_path / "base"
    shutil.copytree(bases("llama"), folder)
    site = SiteFolder(tmp_path / "h", folder)
    start(site)
    start(site, double_quantization=False)
    assert len(places(site)) == 2
    configuration = json.loads((folder / "config.json").read_text())
    configuration["rms_norm_eps"] = 1e-3
    (folder / "config.json").write_text(json.dumps(configuration))
    start(site)
    assert asked == [False] * 3
    assert len(places(site)) == 2
    start(site, double_quantization=False)
    assert asked[-1] is False, "its configuration is another now"


def test_a_full_disk_is_no_obstacle(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Room is left for the ledger: the base is used and not kept, with a line in the log."""
    monkeypatch.setattr(quantized, "_SPARE_BYTES", 1 << 60)
    with caplog.at_level(logging.WARNING):
        found = numbers(start(site))
    assert all(value.isfinite().all() for value in found)
    assert places(site) == []
    assert "too few to keep the quantized base" in caplog.text


def test_a_helper_reads_and_does_not_write(site: SiteFolder, asked: list[bool]) -> None:
    """Several processes of a site do not write the same folder."""
    shelf = Shelf(site.settings(), index=1)
    shelf.get(settings("nf4"))
    assert places(site) == []
    start(site)
    Shelf(site.settings(), index=1).get(settings("nf4"))
    assert asked == [False, False, True]
