"""The resident base: loaded once, in every quantization, with gradients that are right."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hospital_node.trainer.adapter import initial
from hospital_node.trainer.batches import collate
from hospital_node.trainer.errors import Refusal
from hospital_node.trainer.model import Resident, Shelf, choose_device, choose_dtype
from hospital_node.trainer.tokens import TokenSet
from hospital_node.trainer.training import response_loss
from protocol.states import Reason
from protocol.study import AdapterSettings, ModelSettings

from .lab import SiteFolder, build_model


def settings(quantization: str = "none", **changes: object) -> ModelSettings:
    """A base in some quantization."""
    return ModelSettings.model_validate({"base": "any", "quantization": quantization} | changes)


def sequences(*lengths: int) -> TokenSet:
    """Made-up sequences whose prompts are their first halves."""
    ids = np.concatenate([np.arange(3, 3 + length) for length in lengths]).astype(np.int32)
    prompts = np.array([length // 2 for length in lengths], dtype=np.int32)
    return TokenSet(ids, np.cumsum([0, *lengths]).astype(np.int64), prompts, 0)


def resident(folder: Path, tmp_path: Path, quantization: str = "none") -> Resident:
    """A resident base with an adapter whose B is not zero."""
    made = Shelf(SiteFolder(tmp_path, folder).settings()).get(settings(quantization))
    adapter = made.use(AdapterSettings(rank=4, alpha=8))
    adapter.load(initial(adapter.manifest, 0) + np.float32(0.01))
    return made


def gradient(made: Resident) -> torch.Tensor:
    """The adapter's gradient on two sequences, laid end to end."""
    assert made.adapter is not None
    made.model.train()
    made.model.zero_grad()
    torch.manual_seed(0)  # GPT-2 has dropout
    response_loss(made, collate(sequences(8, 12), [0, 1], made.device)).backward()
    made.model.eval()
    return torch.cat([p.grad.flatten() for p in made.adapter.parameters if p.grad is not None])


def test_one_load_serves_studies_and_adapters(site: SiteFolder) -> None:
    """Two studies with other adapters on the same base load it once; the counter says so."""
    shelf = Shelf(site.settings())
    first = shelf.get(settings("nf4"))
    first.use(AdapterSettings(rank=4))
    second = shelf.get(settings("nf4", base="the same, called otherwise"))
    model = second.model
    second.use(AdapterSettings(rank=4))
    assert second is first
    assert second.model is model, "the same settings do not touch the model"
    second.use(AdapterSettings(rank=8))
    assert shelf.loads == 1
    shelf.get(settings("int8"))
    shelf.get(settings("none"))
    assert shelf.loads == 3
    shelf.get(settings("nf4"))
    assert shelf.loads == 4, "two bases stay, the one unused longest goes"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_the_short_way_to_the_logits_is_the_models_own(
    bases: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    """Computing logits at response tokens only gives the full model's numbers."""
    made = resident(bases(kind), tmp_path)
    assert made.shortcut
    batch = collate(sequences(8, 12, 5), [0, 1, 2], made.device)
    with torch.no_grad():
        short = made.response_logits(batch)
        made.shortcut = False
        torch.testing.assert_close(short, made.response_logits(batch))
        blocks: list[torch.Tensor] = []
        made.shortcut = True
        made.response_blocks(batch, lambda logits, _: blocks.append(logits))
        torch.testing.assert_close(short, torch.cat(blocks))


def test_an_architecture_that_caps_its_logits_takes_the_long_way(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short way is measured, not assumed: a model that scales its logits is noticed."""
    made = Shelf(site.settings()).get(settings())
    forward = type(made.model).forward

    def scaled(self: object, *args: object, **kwargs: object) -> object:
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * 3
        return output

    monkeypatch.setattr(type(made.model), "forward", scaled)
    made.use(AdapterSettings(rank=4))
    assert not made.shortcut


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8", "none"])
def test_gradients_after_an_evaluation_are_right(
    bases: Callable[[str], Path], tmp_path: Path, kind: str, quantization: str
) -> None:
    """Evaluating first does not change the gradient, and each quantization's is near the exact.

    On CPUs with AVX512-BF16, bitsandbytes repacks 4-bit weights in evaluation mode for a kernel
    without a gradient; training would go on, silently wrong.
    """
    made = resident(bases(kind), tmp_path, quantization)
    before = gradient(made)
    made.model.eval()
    with torch.no_grad():
        made.response_logits(collate(sequences(8, 12), [0, 1], made.device))
    torch.testing.assert_close(gradient(made), before)
    exact = gradient(resident(bases(kind), tmp_path / "exact"))
    assert torch.cosine_similarity(before, exact, dim=0) > 0.9
    assert (before != 0).float().mean() > 0.9, "the first layers learn too"


def test_other_weights_are_refused(site: SiteFolder) -> None:
    """A base whose hash is not the study's, or not the site's, is not used."""
    shelf = Shelf(site.settings())
    with pytest.raises(Refusal, match=r"the study's model\.sha256") as caught:
        shelf.get(settings(sha256="0" * 64))
    assert caught.value.reason is Reason.MODEL_MISMATCH
    pinned = site.settings()
    pinned = pinned.model_copy(
        update={"model": pinned.model.model_copy(update={"sha256": "0" * 64})}
    )
    with pytest.raises(Refusal, match=r"the site's model\.sha256"):
        Shelf(pinned).get(settings())


def test_a_quantization_the_site_does_not_allow_is_refused(site: SiteFolder) -> None:
    """limits.quantization narrows what a study may ask."""
    shelf = Shelf(site.settings(extra='[limits]\nquantization = ["nf4"]'))
    with pytest.raises(Refusal, match=r"limits.quantization = \['nf4'\]") as caught:
        shelf.get(settings("int8"))
    assert caught.value.reason is Reason.SITE_FORBIDS


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_an_incomplete_directory_is_a_sentence(tmp_path: Path, missing: str) -> None:
    """A copy that lacks a file is refused in one line."""
    folder = build_model("llama", tmp_path / "base")
    (folder / missing).unlink()
    with pytest.raises(
        Refusal, match=r"no readable tokenizer|not a causal language model"
    ) as caught:
        Shelf(SiteFolder(tmp_path / "h", folder).settings()).get(settings())
    assert caught.value.reason is Reason.MODEL_UNREADABLE
    assert "\n" not in str(caught.value)


def test_code_in_a_model_directory_is_not_run(tmp_path: Path) -> None:
    """A directory that brings its own Python is refused, not trusted."""
    import json

    folder = build_model("llama", tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Own",
                                                 "AutoConfig": "own.Config"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(Refusal):
        Shelf(SiteFolder(tmp_path / "h", folder).settings()).get(settings())
    assert not (tmp_path / "ran").exists()


def test_a_gpu_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """device = "cuda" without one is refused; auto falls back to the CPU in float32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Refusal, match="torch sees no CUDA GPU"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")
    assert choose_dtype(settings(), torch.device("cpu")) is torch.float32
    assert choose_dtype(settings(compute_dtype="bfloat16"), torch.device("cpu")) is torch.bfloat16


def test_loading_opens_no_connection(site: SiteFolder) -> None:
    """With every socket forbidden the base still loads: nothing is fetched or reported."""
    site.write()
    program = (
        "import socket\n"
        "def no(*a, **k): raise SystemExit('a socket was opened')\n"
        "socket.socket.connect = no; socket.getaddrinfo = no; socket.create_connection = no\n"
        "from hospital_node.trainer.environment import quiet_libraries\n"
        "quiet_libraries(allow_hub=False)\n"
        "from pathlib import Path\n"
        "from protocol.site import load_site\n"
        "from protocol.study import ModelSettings, AdapterSettings\n"
        "from hospital_node.trainer.model import Shelf\n"
        f"shelf = Shelf(load_site(Path({str(site.home / 'site.toml')!r})))\n"
        "shelf.get(ModelSettings(base='x', quantization='nf4')).use(AdapterSettings(rank=2))\n"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=clean, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "", "the libraries are quiet"
