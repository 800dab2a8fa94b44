"""A tiny language model and a task that hospitals can only learn together.

A row is a task token, eight letters and the eight letters they stand for under that task's
permutation of the alphabet; the second eight are the response:

    <bos> <task> a f c ... <is> r x k ...

The base is pretrained on a few such tasks until it knows them. The federation learns one more, a
permutation drawn by seed, of which a site sees mostly its own letters: each letter's share is
dealt to the sites by a Dirichlet distribution (Hsu et al., arXiv 1909.06335, section 3), so sites
differ in what they know and in how much they have. A site alone cannot answer for the others'
letters, and averaging has to keep what each one learnt.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from hospital_node.trainer.tokens import TokenSet

Rows = NDArray[np.int32]

LETTERS, LENGTH, OLD_TASKS = 52, 8, 4
BOS, IS = 0, 1
NEW_TASK = OLD_TASKS  # the federation's, an embedding that pretraining never touched
FIRST_LETTER = 2 + OLD_TASKS + 1
VOCABULARY = 64  # rounded up; the rest is never used
PROMPT = 3 + LENGTH

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": BOS,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": True,
}


def rows(letters: NDArray[np.int64], tasks: NDArray[np.int64], seed: int) -> Rows:
    """Whole token rows: int32 (n, PROMPT + LENGTH) from `letters` (n, LENGTH), `tasks` (n,).

    `seed` draws each task's permutation.
    """
    count = len(letters)
    maps = np.stack(
        [np.random.default_rng([seed, task]).permutation(LETTERS) for task in range(NEW_TASK + 1)]
    )
    answers = np.take_along_axis(maps[tasks], letters, axis=1)
    head = np.column_stack([np.full(count, BOS), 2 + tasks])
    parts = [head, FIRST_LETTER + letters, np.full((count, 1), IS), FIRST_LETTER + answers]
    return np.hstack(parts).astype(np.int32)


def token_set(of: Rows) -> TokenSet:
    """The rows as the trainer holds them."""
    count, length = of.shape
    starts = np.arange(count + 1, dtype=np.int64) * length
    return TokenSet(of.reshape(-1), starts, np.full(count, PROMPT, np.int32), 0)


def pretrain(folder: Path, *, steps: int = 300, seed: int = 0) -> float:
    """Train a base on the old tasks, write it to `folder`; returns its accuracy on them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(LlamaConfig(**SHAPE))
    random = np.random.default_rng(seed)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        (torch.optim.Muon(matrices, weight_decay=0.0), 2e-2),
        (torch.optim.AdamW(others, weight_decay=0.0), 3e-3),
    ]
    accuracy = 0.0
    for step in range(steps):
        count = 64
        letters = random.integers(0, LETTERS, (count, LENGTH))
        of = torch.from_numpy(rows(letters, random.integers(0, OLD_TASKS, count), seed)).long()
        logits = model(of[:, :-1]).logits[:, PROMPT - 1 :]
        loss = cross_entropy(logits.flatten(0, 1), of[:, PROMPT:].flatten())
        accuracy = float((logits.argmax(-1) == of[:, PROMPT:]).float().mean())
        loss.backward()
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * min((step + 1) / 50, (steps - step) / (steps - 50))
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)
    return accuracy


@dataclass(frozen=True)
class Site:
    """One hospital's rows, and the share of all the data that they are."""

    name: str
    tokens: TokenSet
    share: float


def sites(count: int, *, seed: int, alpha: float, total: int) -> list[Site]:
    """`total` rows dealt to `count` sites; small `alpha` is strong heterogeneity."""
    random = np.random.default_rng([seed, 1])
    shares = random.dirichlet(np.full(count, alpha), LETTERS).T / LETTERS  # (sites, letters)
    made = []
    for place, row in enumerate(shares):
        size = max(32, round(total * row.sum()))
        letters = random.choice(LETTERS, (size, LENGTH), p=row / row.sum())
        of = rows(letters, np.full(size, NEW_TASK), seed)
        made.append(Site(f"site-{place}", token_set(of), float(row.sum())))
    return made


def heldout(count: int, *, seed: int) -> TokenSet:
    """Rows that no site has, every letter as likely as every other."""
    random = np.random.default_rng([seed, 2])
    letters = random.integers(0, LETTERS, (count, LENGTH))
    return token_set(rows(letters, np.full(count, NEW_TASK), seed))
