"""Token sequences: only responses are learnt, the end token too, and long ones are cut sensibly."""

import stat
from pathlib import Path

import numpy as np
import pytest

from hospital_node.trainer import tokens
from hospital_node.trainer.data import Row

from .lab import build_bpe_tokenizer, build_tokenizer
from .test_templates import CHAT

ROWS = [
    Row("which drug", "", "salve"),
    Row("which drug helps", "patient has rash", "tonic", ("salve", "tonic"), 1),
    Row("which ward", "", "one", ("red", "blue"), 0),
]


def test_a_sequence_is_prompt_response_end() -> None:
    """What follows the prompt is the answer's tokens and one end token."""
    tokenizer = build_tokenizer()
    made = tokens.tokenize_rows(tokenizer, "alpaca", ROWS, 96)
    sequence, prompt = made[0]
    assert sequence[prompt:].tolist() == [
        *tokenizer("salve", add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    ]
    assert made.truncated == 0


def test_a_chat_template_that_writes_the_end_is_not_ended_twice() -> None:
    """The chat response has exactly one end token."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT + "\n"
    sequence, prompt = tokens.tokenize_rows(tokenizer, "chat", ROWS, 96)[0]
    assert sequence[prompt:].tolist().count(tokenizer.eos_token_id) == 1
    assert sequence[-1] == tokenizer.eos_token_id


def test_decoding_gives_the_text_back() -> None:
    """With a byte-level tokenizer the sequence is the template's text, character for character."""
    tokenizer = build_bpe_tokenizer()
    sequence, prompt = tokens.tokenize_rows(tokenizer, "plain", ROWS, 96)[1]
    assert tokenizer.decode(sequence[:prompt]) == "which drug helps\npatient has rash\n"
    assert tokenizer.decode(sequence[prompt:]) == "tonic<|endoftext|>"


def test_plain_text_is_learnt_from_its_first_token() -> None:
    """One beginning token is the prompt; held-out rows are scored on their answers alone."""
    tokenizer = build_bpe_tokenizer()
    sequence, prompt = tokens.tokenize_rows(tokenizer, "text", ROWS, 96)[0]
    assert prompt == 1
    assert sequence[0] == tokenizer.bos_token_id
    assert tokenizer.decode(sequence[1:]) == "which drug\nsalve<|endoftext|>"
    held = tokens.tokenize_heldout(tokenizer, "text", ROWS, 96)
    plain = tokens.tokenize_heldout(tokenizer, "plain", ROWS, 96)
    assert held.sequences.ids.tolist() == plain.sequences.ids.tolist()
    assert held.sequences.prompts.tolist() == plain.sequences.prompts.tolist()


@pytest.mark.parametrize(
    ("prompt", "response", "room", "kept"),
    [
        (4, 3, 10, (4, 3)),
        (10, 3, 8, (5, 3)),
        (10, 10, 8, (4, 4)),
        (2, 10, 8, (2, 6)),
        (1, 10, 2, (1, 1)),
    ],
)
def test_what_is_cut(prompt: int, response: int, room: int, kept: tuple[int, int]) -> None:
    """The prompt's middle goes first; a response loses its end only beyond half of the room."""
    before, after = tokens.fit(list(range(prompt)), list(range(100, 100 + response)), room)
    assert (len(before), len(after)) == kept
    assert before[-1] == prompt - 1
    assert before[0] == 0 or len(before) == 1
    assert after == list(range(100, 100 + kept[1]))


def test_cuts_are_counted() -> None:
    """The number of sequences that lost something is known."""
    tokenizer = build_tokenizer()
    assert tokens.tokenize_rows(tokenizer, "alpaca", ROWS, 8).truncated == 3


def test_held_out_rows_have_every_scored_response() -> None:
    """One sequence for a free row, one an option otherwise, plus an answer that is no option."""
    heldout = tokens.tokenize_heldout(build_tokenizer(), "alpaca", ROWS, 96)
    assert heldout.row.tolist() == [0, 1, 1, 2, 2, 2]
    assert heldout.option.tolist() == [-1, 0, 1, 0, 1, -1]
    assert heldout.reference.tolist() == [True, False, True, False, False, True]
    assert heldout.weight.tolist() == [5, 5, 5, 3, 4, 3]
    assert heldout.answer.tolist() == [-1, 1, 0]


def test_the_cache_gives_the_same_sets_back_privately(tmp_path: Path) -> None:
    """What is read from the cache file is what was written, and only the owner can read it."""
    tokenizer = build_tokenizer()
    train = tokens.tokenize_rows(tokenizer, "alpaca", ROWS, 96)
    heldout = tokens.tokenize_heldout(tokenizer, "alpaca", ROWS, 96)
    path = tmp_path / "cache" / tokens.cache_name("a")
    tokens.save(path, train, heldout)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    loaded = tokens.load(path)
    assert loaded is not None
    for made, read in ((train, loaded[0]), (heldout.sequences, loaded[1].sequences)):
        np.testing.assert_array_equal(made.ids, read.ids)
        np.testing.assert_array_equal(made.starts, read.starts)
        np.testing.assert_array_equal(made.prompts, read.prompts)


def test_a_damaged_cache_is_not_used(tmp_path: Path) -> None:
    """A cut or foreign file is as good as none."""
    path = tmp_path / "tokens-x.npz"
    assert tokens.load(path) is None
    for content in (b"", b"PK\x03\x04 nothing", b"hello"):
        path.write_bytes(content)
        assert tokens.load(path) is None


def test_old_cache_files_go(tmp_path: Path) -> None:
    """A cache does not grow for ever."""
    tokenizer = build_tokenizer()
    train = tokens.tokenize_rows(tokenizer, "alpaca", ROWS, 96)
    heldout = tokens.tokenize_heldout(tokenizer, "alpaca", ROWS, 96)
    for number in range(12):
        tokens.save(tmp_path / tokens.cache_name(number), train, heldout)
    assert len(list(tmp_path.iterdir())) == 8


def test_the_digest_sees_the_chat_template() -> None:
    """Tokenizers that write differently have different digests."""
    one, two = build_tokenizer(), build_tokenizer()
    assert tokens.tokenizer_digest(one) == tokens.tokenizer_digest(two)
    two.chat_template = CHAT
    digests = {tokens.tokenizer_digest(made) for made in (one, two, build_bpe_tokenizer())}
    assert len(digests) == 3
