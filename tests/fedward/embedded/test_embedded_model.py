"""The shipped base model and its tokenizer."""

import random
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from fedward.embedded import corpus
from fedward.embedded.model import (
    WEIGHTS,
    WEIGHTS_SHA256,
    collate,
    encode,
    pretrain,
    sha256,
)
from fedward.embedded.tokenizer import alpaca_prompt, build_tokenizer
from fedward.embedded.trial import load_base

ODD_TEXT = "Héllo  wörld\n\ttab </x> 日本 🙂 ▁ it's , .\r\n Which drug?  end "


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def quantized() -> Any:
    return load_base(WEIGHTS)[1]


def test_shipped_weights_are_the_recorded_ones() -> None:
    """The shipped file has the recorded SHA-256, and the whole folder is under 8 MB."""
    assert sha256(WEIGHTS / "model.safetensors") == WEIGHTS_SHA256
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 8_000_000


def test_shape_fits_nf4_blocks() -> None:
    """The model is a small Llama in which both sides of every matrix are multiples of 64."""
    model = LlamaForCausalLM.from_pretrained(WEIGHTS)
    assert 1_500_000 < sum(p.numel() for p in model.parameters()) < 4_000_000
    matrices = [p for p in model.parameters() if p.ndim == 2]
    assert {size % 64 for matrix in matrices for size in matrix.shape} == {0}
    assert model.config.head_dim % 64 == 0


def test_shipped_tokenizer_is_built_from_the_corpus(tokenizer: Any) -> None:
    """The shipped tokenizer is the one that the corpus's words give today."""
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()


def test_any_text_survives(tokenizer: Any) -> None:
    """Text of any script, spacing or line break comes back from its tokens unchanged."""
    ids = tokenizer(ODD_TEXT, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == ODD_TEXT


def test_names_split_where_the_rule_is(tokenizer: Any) -> None:
    """Every condition is two tokens, and the second is its suffix."""
    for specialty in corpus.specialties():
        for root in specialty.roots:
            for suffix in corpus.SUFFIXES:
                assert tokenizer.tokenize(f" {root}{suffix}") == [f" {root}", suffix]


def test_rows_are_short(tokenizer: Any) -> None:
    """A row of the corpus with its prompt is under 40 tokens, and 25 on average."""
    items = corpus.pretraining_items(random.Random(0), 400)
    lengths = [
        len(prompt) + len(answer) for prompt, answer in (encode(tokenizer, i) for i in items)
    ]
    assert max(lengths) < 40
    assert sum(lengths) / len(lengths) < 25


def test_answer_tokens_do_not_depend_on_the_prompt(tokenizer: Any) -> None:
    """Prompt and answer give the same tokens whether they are encoded together or apart."""
    for item in corpus.pretraining_items(random.Random(0), 100):
        prompt, answer = encode(tokenizer, item)
        text = alpaca_prompt(item.instruction, item.input) + item.output + "</s>"
        assert tokenizer(text)["input_ids"] == prompt + answer


def test_alpaca_prompt_without_input() -> None:
    """A row without input has no Input block and does not speak of one."""
    assert alpaca_prompt("Do it.") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nDo it.\n\n### Response:\n"
    )
    assert "paired with an input" in alpaca_prompt("Do it.", "x")
    assert "\n\n### Input:\nx\n\n### Response:\n" in alpaca_prompt("Do it.", "x")


def test_chat_template_marks_the_answer(tokenizer: Any) -> None:
    """The chat template's assistant mask covers the answer and its end token, nothing else."""
    talk = [
        {"role": "user", "content": "Which ward?"},
        {"role": "assistant", "content": "amber"},
    ]
    encoded = tokenizer.apply_chat_template(
        talk, return_dict=True, return_assistant_tokens_mask=True
    )
    masked = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    assert tokenizer.decode([token for token, mark in masked if mark]) == "amber</s>"


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("bos", [False, True])
def test_base_knows_the_common_and_not_the_withheld(
    tokenizer: Any, quantized: Any, chat: bool, bos: bool
) -> None:
    """In 4 bits, as Alpaca or chat, it answers about wards and can only guess about drugs."""
    right = dict.fromkeys(("ward", "drug"), 0)
    rng, world = random.Random(0), corpus.World(0)
    for attribute in right:
        items = []
        for _ in range(120):
            specialty = rng.choice(corpus.specialties())
            condition = (rng.choice(specialty.roots), rng.choice(corpus.SUFFIXES))
            phrasing = rng.choice(corpus.phrasings(attribute))
            items.append(
                world.item(
                    rng, specialty, condition, attribute, phrasing, choice=rng.random() < 0.5
                )
            )
        rows = [encode(tokenizer, item, chat=chat, bos=bos) for item in items]
        ids, mask, labels = collate(rows, tokenizer.pad_token_id)
        with torch.no_grad():
            best = quantized(input_ids=ids, attention_mask=mask).logits[:, :-1].argmax(-1)
        right[attribute] = int(((best == labels[:, 1:]) | (labels[:, 1:] < 0)).all(1).sum())
    assert right["ward"] > 0.95 * 120
    # One in four with options, one in six without: 25 of 120, standard deviation 4.4.
    assert right["drug"] < 43


def test_deterministic(tokenizer: Any, quantized: Any) -> None:
    """Two loads of the model give the same logits, bit for bit."""
    ids = torch.tensor([tokenizer(ODD_TEXT)["input_ids"]])
    again = load_base(WEIGHTS)[1]
    with torch.no_grad():
        assert torch.equal(quantized(input_ids=ids).logits, again(input_ids=ids).logits)


def test_generates_an_answer_and_stops(tokenizer: Any, quantized: Any) -> None:
    """Greedy generation writes the ward's name and ends by itself."""
    specialty, world = corpus.specialties()[1], corpus.World(0)
    prompt = alpaca_prompt(f"Which ward takes {specialty.roots[0]}oma?")
    encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        out = quantized.generate(**encoded, max_new_tokens=16, do_sample=False)
    text = tokenizer.decode(out[0, encoded["input_ids"].shape[1] :])
    assert text == world.fact(specialty, "ward", "oma") + "</s>"


def test_pretraining_is_reproducible(tokenizer: Any) -> None:
    """Pretraining twice gives the same weights, bit for bit."""
    states = [pretrain(tokenizer, steps=3, threads=1, report=False).state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
