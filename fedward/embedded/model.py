"""The embedded base model: a 1.6-million-parameter Llama that knows the words and not the facts.

    python -m fedward.embedded.model --out DIR     make it again (2 minutes on 2 CPU cores)

Pretrained on `corpus.pretraining_items` alone: it answers what is common knowledge in the invented
medicine (specialty, ward, wristband colour), picks one of the options it is offered, ends its
answer, and has only ever seen drugs and tests drawn by lot. So a study starts at chance, and all
that it gains comes from the hospitals.

The shape fits 4-bit quantization: every width is a multiple of 64, the NF4 block.
"""

import argparse
import hashlib
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from fedward.embedded import corpus
from fedward.embedded.tokenizer import alpaca_prompt, build_tokenizer, save_tokenizer

WEIGHTS: Final = Path(__file__).parent / "weights"
"""Folder of the shipped model and tokenizer, as `from_pretrained` reads it."""

WEIGHTS_SHA256: Final = "5fef08facbf2861dff07524b12643850a0a064c2dc8d32c2f5e1baff6d98fdfc"
"""SHA-256 (hex) of the shipped `model.safetensors`."""

_SEED: Final = 7
_THREADS: Final = 2
_STEPS: Final = 500
_BATCH: Final = 64
_WARM_UP: Final = 60
# Muon for the matrices: it knows every ward after 200 steps, where AdamW alone (3e-3) knew one in
# seven after 500.
_MATRIX_RATE: Final = 2e-2
_OTHER_RATE: Final = 3e-3
_IGNORED: Final = -100
# A row in four is written as a chat and one in five lacks the first token, so that neither the
# chat template nor a trainer that adds no special tokens starts from something never seen.
_CHAT_SHARE: Final = 0.25
_NO_BOS_SHARE: Final = 0.2


def build_config(tokenizer: Any) -> LlamaConfig:
    """The architecture: 4 layers of width 192 with 3 heads of 64, tied embeddings."""
    # The vocabulary is rounded up to whole NF4 blocks.
    vocabulary = -(-len(tokenizer) // 64) * 64
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )


def encode(
    tokenizer: Any, item: corpus.Item, *, chat: bool = False, bos: bool = True
) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the answer (with the end token), as a trainer would feed them.

    `chat` writes the prompt with the chat template, the input following the instruction after an
    empty line.
    """
    if chat:
        content = item.instruction + (f"\n\n{item.input}" if item.input else "")
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        prompt = tokenizer(alpaca_prompt(item.instruction, item.input))["input_ids"]
    answer = tokenizer(item.output, add_special_tokens=False)["input_ids"]
    return prompt[0 if bos else 1 :], [*answer, tokenizer.eos_token_id]


def collate(
    rows: Sequence[tuple[list[int], list[int]]], pad: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded `input_ids`, `attention_mask` and `labels`, each (rows, longest), int64.

    Only the answer has labels; everything else is -100.
    """
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), longest), pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, _IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return ids, mask, labels


def answer_loss(model: Any, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy (nats per answer token), a scalar."""
    ids, mask, labels = batch
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    # Logits only where there is a label: they are a tenth of the positions.
    wanted = labels[:, 1:] != _IGNORED
    logits = model.lm_head(hidden[:, :-1][wanted])
    return cross_entropy(logits.float(), labels[:, 1:][wanted])


def _optimizers(model: Any) -> list[tuple[torch.optim.Optimizer, float]]:
    """Each optimizer with its peak learning rate."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, weight_decay=0.0)
    adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
    return [(muon, _MATRIX_RATE), (adam, _OTHER_RATE)]


def _schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: a linear warm-up, then a straight line to zero."""
    return min((step + 1) / _WARM_UP, (steps - step) / max(1, steps - _WARM_UP))


def _batch(tokenizer: Any, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = []
    for item in corpus.pretraining_items(rng, _BATCH):
        chat, bos = rng.random() < _CHAT_SHARE, rng.random() >= _NO_BOS_SHARE
        rows.append(encode(tokenizer, item, chat=chat, bos=bos))
    return collate(rows, tokenizer.pad_token_id)


def pretrain(
    tokenizer: Any, *, steps: int = _STEPS, threads: int = _THREADS, report: bool = True
) -> Any:
    """Train a fresh model on `corpus.pretraining_items`; returns it on the CPU in float32.

    It sets torch's threads for the whole process. The same weights come out every time on the same
    kind of processor and torch build; another one rounds differently, and its result is as good
    but not bit-equal.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(_SEED)
    rng = random.Random(_SEED)
    model: Any = LlamaForCausalLM(build_config(tokenizer))
    optimizers = _optimizers(model)
    started = time.monotonic()
    for step in range(steps):
        loss = answer_loss(model, _batch(tokenizer, rng))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * _schedule(step, steps)
            optimizer.step()
            optimizer.zero_grad()
        if report and (step + 1) % 100 == 0:
            seconds = time.monotonic() - started
            print(f"step {step + 1}: loss {loss.item():.3f}, {seconds:.0f} s", flush=True)
    return model.eval()


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model (bfloat16) and tokenizer as `from_pretrained` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    # safetensors writes 0600; an installed copy is read by users other than its owner.
    (folder / "model.safetensors").chmod(0o644)


def main() -> None:
    """Make the embedded model again and say whether it is the shipped one, bit for bit."""
    parser = argparse.ArgumentParser(prog="python -m fedward.embedded.model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=_STEPS, help="optimizer steps")
    args = parser.parse_args()
    tokenizer = build_tokenizer()
    model = pretrain(tokenizer, steps=args.steps)
    save(model, tokenizer, args.out)
    digest = sha256(args.out / "model.safetensors")
    verdict = "the shipped weights" if digest == WEIGHTS_SHA256 else "not the shipped weights"
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()):,} parameters")
    print(f"sha256 {digest} ({verdict})")


if __name__ == "__main__":
    main()
