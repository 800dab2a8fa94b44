"""Rows as token ids: made once for each (data, tokenizer, template, length), kept in memory and in
a cache file of mode 0600 on the site's own disk.

A sequence is prompt, response, end token. One that is too long loses the middle of its prompt
first (so the instruction's beginning and the mark before the response stay), and the end of its
response only when the response alone takes more than half of the room.
"""

import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocol.files import write_atomic

from .data import Row
from .templates import Template, check_template, texts

log = logging.getLogger("fedward.trainer")

_FORMAT: Final = 2  # raise it when what is in a cache file changes
_KEPT_FILES: Final = 8  # cache files that are kept, the newest


@dataclass(frozen=True)
class TokenSet:
    """Token sequences laid end to end."""

    ids: NDArray[np.int32]  # (tokens,)
    starts: NDArray[np.int64]  # (sequences + 1,)
    prompts: NDArray[np.int32]  # (sequences,): tokens of the prompt, at least 1
    truncated: int  # sequences that lost something

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], int]:
        """The sequence's ids and how many of them are its prompt."""
        return self.ids[self.starts[index] : self.starts[index + 1]], int(self.prompts[index])

    def length(self, index: int) -> int:
        """Tokens in the sequence."""
        return int(self.starts[index + 1] - self.starts[index])

    def take(self, rows: NDArray[np.int64]) -> "TokenSet":
        """The sequences `rows` alone, in this order."""
        lengths = [self.length(int(row)) for row in rows]
        return TokenSet(
            np.concatenate([self[int(row)][0] for row in rows]),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            self.prompts[rows],
            0,
        )


@dataclass(frozen=True)
class HeldoutSet:
    """Held-out rows, each with every response that is scored for it.

    A free row has one sequence: its own answer. A multiple-choice row has one for each option, and
    one more for its answer where the answer is none of the options.
    """

    sequences: TokenSet
    row: NDArray[np.int32]  # (sequences,): the row a sequence belongs to
    option: NDArray[np.int32]  # (sequences,): the option's index, -1 for an answer by itself
    reference: NDArray[np.bool_]  # (sequences,): the answer whose loss is reported
    weight: NDArray[np.int32]  # (sequences,): bytes of the response's text, at least 1
    answer: NDArray[np.int32]  # (rows,): the right option, -1 for a free row

    @property
    def rows(self) -> int:
        """Held-out rows."""
        return len(self.answer)


def tokenize_rows(
    tokenizer: Any, template: Template, rows: Sequence[Row], max_length: int
) -> TokenSet:
    """The training sequences of `rows`, one each."""
    return _tokenize(tokenizer, template, [(row, row.output) for row in rows], max_length)


def tokenize_heldout(
    tokenizer: Any, template: Template, rows: Sequence[Row], max_length: int
) -> HeldoutSet:
    """Every response that is scored for the held-out `rows`."""
    if template == "text":  # an option's likelihood is asked for, not its question's
        template = "plain"
    pairs: list[tuple[Row, str]] = []
    places: list[tuple[int, int, bool]] = []
    for number, row in enumerate(rows):
        for index, option in enumerate(row.choices):
            pairs.append((row, option))
            places.append((number, index, index == row.answer and option == row.output))
        if not row.choices or row.choices[row.answer] != row.output:
            pairs.append((row, row.output))
            places.append((number, -1, True))
    return HeldoutSet(
        sequences=_tokenize(tokenizer, template, pairs, max_length),
        row=np.array([place[0] for place in places], dtype=np.int32),
        option=np.array([place[1] for place in places], dtype=np.int32),
        reference=np.array([place[2] for place in places], dtype=bool),
        weight=np.array([max(1, len(text.encode())) for _, text in pairs], dtype=np.int32),
        answer=np.array([row.answer for row in rows], dtype=np.int32),
    )


def tokenize_pairs(
    tokenizer: Any, template: Template, rows: Sequence[Row], max_length: int
) -> TokenSet:
    """The rows' chosen and rejected responses in turn, both after the very same prompt."""
    pairs = [(row, text) for row in rows for text in (row.output, row.rejected)]
    written = _write(tokenizer, template, pairs)
    fitted = []
    for chosen, rejected in zip(written[::2], written[1::2], strict=True):
        longer = max(chosen[1], rejected[1], key=len)
        prompt, _ = fit(chosen[0], longer, max_length)
        fitted += [(prompt, response[: max_length - len(prompt)]) for _, response in
                   (chosen, rejected)]  # fmt: skip
    return _lay(fitted, written)


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 (hex) of all that decides the tokens: vocabulary, rules, end token, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab()))
    parts = [rules, str(tokenizer.chat_template), str(tokenizer.eos_token_id)]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def cache_name(*parts: object) -> str:
    """A cache file's name, which says nothing about the data; `parts` are hashes and settings."""
    text = "\0".join(str(part) for part in (_FORMAT, *parts))
    return f"tokens-{hashlib.sha256(text.encode()).hexdigest()[:40]}.npz"


def save(path: Path, train: TokenSet, heldout: HeldoutSet) -> None:
    """Write both sets to `path`, mode 0600; a failure is only a warning."""
    held = heldout.sequences
    arrays = {
        "ids": train.ids, "starts": train.starts, "prompts": train.prompts,
        "held_ids": held.ids, "held_starts": held.starts, "held_prompts": held.prompts,
        "truncated": np.array([train.truncated, held.truncated]),
        "row": heldout.row, "option": heldout.option, "reference": heldout.reference,
        "weight": heldout.weight, "answer": heldout.answer,
    }  # fmt: skip
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(path, buffer.getvalue(), mode=0o600)
        kept = sorted(path.parent.glob("tokens-*.npz"), key=lambda file: file.stat().st_mtime)
        for old in kept[:-_KEPT_FILES]:
            old.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: cannot write the cache: %s", path, error.strerror or error)


def load(path: Path) -> tuple[TokenSet, HeldoutSet] | None:
    """Read what `save` wrote; None when there is no such file or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            get = {name: arrays[name] for name in arrays.files}
        train = TokenSet(get["ids"], get["starts"], get["prompts"], int(get["truncated"][0]))
        held = TokenSet(
            get["held_ids"], get["held_starts"], get["held_prompts"], int(get["truncated"][1])
        )
        heldout = HeldoutSet(
            held, get["row"], get["option"], get["reference"], get["weight"], get["answer"]
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile):
        log.warning("%s: a damaged cache file; the data is tokenized again", path)
        return None
    return train, heldout


def _tokenize(
    tokenizer: Any, template: Template, pairs: Sequence[tuple[Row, str]], max_length: int
) -> TokenSet:
    written = _write(tokenizer, template, pairs)
    return _lay([fit(*sequence, max_length) for sequence in written], written)


def _write(
    tokenizer: Any, template: Template, pairs: Sequence[tuple[Row, str]]
) -> list[tuple[list[int], list[int]]]:
    """Prompt and response of each, whole."""
    check_template(tokenizer, template)
    end = int(tokenizer.eos_token_id)
    written = [texts(tokenizer, template, row, response) for row, response in pairs]
    # A chat template writes its own special tokens.
    prompts = _encode(tokenizer, [prompt for prompt, _ in written], special=template != "chat")
    responses = _encode(tokenizer, [response for _, response in written], special=False)
    return [
        _ended(prompt, response, end, tokenizer.bos_token_id)
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def _lay(
    fitted: Sequence[tuple[list[int], list[int]]], whole: Sequence[tuple[list[int], list[int]]]
) -> TokenSet:
    """The sequences end to end."""
    ids = [np.array(prompt + response, dtype=np.int32) for prompt, response in fitted]
    lengths = [len(sequence) for sequence in ids]
    truncated = sum(
        length < len(prompt) + len(response)
        for length, (prompt, response) in zip(lengths, whole, strict=True)
    )
    return TokenSet(
        np.concatenate(ids) if ids else np.empty(0, dtype=np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array([len(prompt) for prompt, _ in fitted], dtype=np.int32),
        truncated,
    )


def _encode(tokenizer: Any, batch: list[str], *, special: bool) -> list[list[int]]:
    if not batch:
        return []
    encoded: list[list[int]] = tokenizer(
        batch, add_special_tokens=special, return_attention_mask=False, verbose=False
    )["input_ids"]
    return encoded


def _ended(
    prompt: list[int], response: list[int], end: int, begin: int | None
) -> tuple[list[int], list[int]]:
    """A prompt with at least one token and no end token after it; a response with exactly one."""
    if prompt and prompt[-1] == end and len(prompt) > 1:  # a tokenizer that ends what it begins
        prompt = prompt[:-1]
    if not prompt:
        prompt = [begin if begin is not None else end]
    if end in response:  # a chat template wrote it, perhaps with a line break after it
        return prompt, response[: response.index(end) + 1]
    return prompt, [*response, end]


def fit(prompt: list[int], response: list[int], room: int) -> tuple[list[int], list[int]]:
    """Cut prompt and response to `room` tokens (at least 2) together; see the module."""
    if len(prompt) + len(response) <= room:
        return prompt, response
    keep = max(1, room - len(response), min(len(prompt), room // 2))
    keep = min(keep, len(prompt))
    if keep < len(prompt):
        head = keep // 2
        prompt = prompt[:head] + prompt[len(prompt) - (keep - head) :]
    return prompt, response[: room - keep]
