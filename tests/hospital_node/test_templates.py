"""Prompts: the classic Alpaca words, the tokenizer's own chat template, and nothing added."""

import pytest

from hospital_node.trainer.data import Row
from hospital_node.trainer.errors import Refusal
from hospital_node.trainer.templates import alpaca_prompt, check_template, texts

from .lab import build_tokenizer

ROW = Row("Name {the} drug.", "Rash {x}.", "Salve.")
TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
CHAT = TURNS + "{% if add_generation_prompt %}<|assistant|>{% endif %}"


def test_alpaca_is_the_classic_text() -> None:
    """Word for word as Stanford published it, with and without input; braces in a row are text."""
    assert alpaca_prompt("Name {the} drug.", "") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nName {the} drug.\n\n### Response:\n"
    )
    assert alpaca_prompt("Name it.", "Rash {x}.") == (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName it.\n\n### Input:\nRash {x}.\n\n### Response:\n"
    )


def test_plain_adds_nothing() -> None:
    """Instruction and input, each on its line."""
    assert texts(None, "plain", ROW, ROW.output) == ("Name {the} drug.\nRash {x}.\n", "Salve.")


def test_text_is_all_response() -> None:
    """Nothing is a prompt, so the question is learnt as the answer is."""
    whole = "Name {the} drug.\nRash {x}.\nSalve."
    assert texts(None, "text", ROW, ROW.output) == ("", whole)


def test_chat_is_the_tokenizers_own() -> None:
    """The prompt is the user's turn, the response what the template writes for the assistant."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT
    prompt, response = texts(tokenizer, "chat", ROW, ROW.output)
    assert prompt == "<|user|>Name {the} drug.\n\nRash {x}.</s><|assistant|>"
    assert response == "Salve.</s>"


def test_no_chat_template_is_a_sentence() -> None:
    """A base model's tokenizer without a template is refused with what to do."""
    with pytest.raises(Refusal, match=r'no chat template; use prompt\.template = "alpaca"'):
        check_template(build_tokenizer(), "chat")


def test_no_end_token_is_a_sentence() -> None:
    """Without an end token no answer could be learnt to end."""
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(Refusal, match="no end token"):
        check_template(tokenizer, "alpaca")
