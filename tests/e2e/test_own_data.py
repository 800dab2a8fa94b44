"""A user's own hospitals: another architecture, three file formats, columns, a chat template."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .conftest import Running, fedward

ROWS = [(f"Which ward treats case {n}?", f"Ward {n % 3}.") for n in range(40)]
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of some ten thousand random parameters with a byte-level tokenizer of its own."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [text for row in ROWS for text in row],
        trainers.BpeTrainer(
            vocab_size=400,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["</s>"],
        ),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", chat_template=CHAT
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=512, n_positions=256, n_embd=64, n_layer=2, n_head=2, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def write_files(folder: Path) -> dict[str, object]:
    """One hospital a format, each with its own column names; the federation.toml's tree."""
    jsonl, table, parquet = folder / "notes.jsonl", folder / "notes.csv", folder / "notes.parquet"
    jsonl.write_text("".join(json.dumps({"frage": q, "antwort": a}) + "\n" for q, a in ROWS))
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "reply"])
        writer.writerows(ROWS)
    questions, answers = zip(*ROWS, strict=True)
    pq.write_table(pa.table({"q": questions, "a": answers}), parquet)
    columns = {
        "jsonl-site": (jsonl, "frage", "antwort"),
        "csv-site": (table, "question", "reply"),
        "parquet-site": (parquet, "q", "a"),
    }
    return {
        "sites": {
            name: {
                "data": {
                    "train": [file.name],
                    "columns": {"instruction": question, "output": answer},
                },
                "device": "cpu",
            }
            for name, (file, question, answer) in columns.items()
        }
    }


@pytest.mark.timeout(600)
def test_own_files_and_model_train_in_both_templates(
    up: Callable[..., Running], gpt2: Path, tmp_path: Path
) -> None:
    """A GPT-2 base learns from three formats; the same federation then runs the chat template."""
    running = up(tomli_w.dumps(write_files(tmp_path)))
    for template, quantization in (("alpaca", "nf4"), ("chat", "none")):
        study = {
            "name": f"own-{template}",
            "model": {"base": str(gpt2), "quantization": quantization},
            "adapter": {"rank": 4, "alpha": 8},
            "prompt": {"template": template},
            "training": {"steps": 6, "batch_size": 8, "learning_rate": 5e-3, "max_length": 128},
            "rounds": {"count": 2, "minimum_sites": 3, "deadline_seconds": 120},
        }
        file = tmp_path / f"{template}.toml"
        file.write_text(tomli_w.dumps(study))
        report = json.loads(fedward("run", str(file), "--json", folder=running.folder).stdout)
        assert report["state"] == "finished"
        assert len(report["rounds"]) == 2
        assert {site["train_examples"] for site in report["sites"].values()} == {36}
        first, last = report["rounds"][0]["train_loss"], report["rounds"][-1]["train_loss"]
        assert last < first
        fedward(
            "export", report["study_id"], "--out", str(tmp_path / template), folder=running.folder
        )
        _load_with_stock_peft(gpt2, tmp_path / template)


def _load_with_stock_peft(base: Path, adapter: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    assert any(
        float(value.detach().abs().max()) > 0
        for name, value in model.named_parameters()
        if "lora_B" in name
    )
