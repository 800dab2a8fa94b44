"""Training speed: real tokens a second, a plain Hugging Face loop against fedward's trainer.

    python -m bench trainer [--quick]

Both arms train the same LoRA on the same random Llama on the same examples in the same order, and
their losses must agree. Examples are as long as medical flashcards (Medical Meadow: some 110 tokens
with the prompt, most between 50 and 250). The plain loop is what the usual client does: a batch
padded to its longest example, transformers' own loss over all places, torch's AdamW. Padding is
not counted as tokens in either arm. Steps alternate between the arms, so that a busy machine is
equally busy for both; CPU seconds are those of this process.
"""

import argparse
import copy
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.report import write_results
from hospital_node.trainer.adapter import initial
from hospital_node.trainer.model import Resident, load_base
from hospital_node.trainer.tokens import TokenSet
from hospital_node.trainer.training import Plan, train
from protocol.study import AdapterSettings, ModelSettings, Quantization

RATE, CLIP = 1e-3, 1.0


@dataclass
class Arm:
    """What one way of training took."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    tokens: int = 0  # real ones
    losses: list[float] = field(default_factory=list)


def flashcards(count: int, vocabulary: int, *, seed: int = 0, longest: int = 512) -> TokenSet:
    """Random tokens in sequences as long as flashcards; half of each is the prompt."""
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(np.log(110), 0.5, count), 24, longest).astype(np.int64)
    ids = random.integers(3, vocabulary, int(lengths.sum()), dtype=np.int32)
    prompts = (lengths // 2).astype(np.int32)
    return TokenSet(ids, np.concatenate([[0], np.cumsum(lengths)]), prompts, 0)


def padded_batch(
    tokens: TokenSet, rows: NDArray[np.int64], device: torch.device
) -> dict[str, torch.Tensor]:
    """What a Hugging Face collator makes: ids, mask and labels, padded to the longest."""
    longest = max(tokens.length(int(row)) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for place, row in enumerate(rows):
        sequence, prompt = tokens[int(row)]
        values = torch.from_numpy(sequence.astype(np.int64))
        ids[place, : len(values)] = values
        mask[place, : len(values)] = 1
        labels[place, prompt : len(values)] = values[prompt:]
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def plain_step(
    model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]
) -> float:
    """One optimizer step as everybody writes it."""
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def timed(arm: Arm, tokens: int, work: Any) -> None:
    """Do `work()`, which returns the losses of its steps, and add what it took to `arm`."""
    wall, cpu = time.perf_counter(), time.process_time()
    arm.losses += work()
    arm.seconds += time.perf_counter() - wall
    arm.cpu_seconds += time.process_time() - cpu
    arm.tokens += tokens


def compare(shape: dict[str, int], *, steps: int, batch_size: int) -> tuple[Arm, Arm]:
    """Train a Llama of `shape` both ways; the first step of each is not counted in the time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    device = torch.device("cpu")
    with tempfile.TemporaryDirectory(prefix="fedward-bench-") as name:
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True)).save_pretrained(name)
        wanted = ModelSettings(base=name, quantization=Quantization.NONE)
        base = load_base(Path(name), wanted, torch.float32, device)
    settings = AdapterSettings(rank=16, alpha=32)
    plain_base = copy.deepcopy(base)
    resident = Resident(Path(), "", 0, None, base, device, torch.float32)
    adapter = resident.use(settings)
    first = initial(adapter.manifest, 0)
    adapter.load(first)
    other = Resident(Path(), "", 0, None, plain_base, device, torch.float32)
    other.use(settings).load(first)
    other.model.get_base_model().config._attn_implementation = "sdpa"

    tokens = flashcards(batch_size * (steps + 1), shape["vocab_size"])
    plain, ours = Arm(), Arm()
    optimizer = torch.optim.AdamW(
        [p for p in other.model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0
    )
    other.model.train()
    # The trainer's optimizer lives as long as a round: its steps are run as one round, and the
    # plain loop's in between.
    rows = np.arange(len(tokens))
    plan = Plan(batch_size, RATE, 0.0, CLIP, seed=0)
    clock = [time.perf_counter(), time.process_time()]

    def between(loss: float, count: int) -> None:
        ours.losses.append(loss)
        ours.seconds += time.perf_counter() - clock[0]
        ours.cpu_seconds += time.process_time() - clock[1]
        ours.tokens += count
        start = (len(ours.losses) - 1) * batch_size
        batch_rows = rows[start : start + batch_size]

        def work() -> list[float]:
            batch = padded_batch(tokens, batch_rows, device)
            return [plain_step(other.model, optimizer, batch)]

        timed(plain, count, work)
        if len(ours.losses) == 1:  # warm-up: kernels are chosen, memory is taken
            for arm in (ours, plain):
                arm.seconds = arm.cpu_seconds = 0.0
                arm.tokens = 0
        clock[:] = [time.perf_counter(), time.process_time()]

    train(resident, adapter, tokens, rows, plan, between)
    return plain, ours


def main() -> None:
    """Compare, check the losses, print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.trainer", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model, a minute")
    quick = parser.parse_args().quick
    shape = {
        "vocab_size": 8192 if quick else 32768,
        "hidden_size": 256 if quick else 768,
        "intermediate_size": 768 if quick else 2048,
        "num_hidden_layers": 4 if quick else 12,
        "num_attention_heads": 4 if quick else 12,
        "num_key_value_heads": 2 if quick else 4,
        "max_position_embeddings": 512,
    }
    plain, ours = compare(shape, steps=3 if quick else 4, batch_size=8 if quick else 16)
    apart = max(abs(a - b) / a for a, b in zip(plain.losses, ours.losses, strict=True))
    if apart > 1e-4:
        raise SystemExit(f"the losses differ by {apart:.1e}: {plain.losses} {ours.losses}")
    ratio = plain.cpu_seconds / ours.cpu_seconds
    figures = {
        arm: {
            "tokens": found.tokens,
            "seconds": found.seconds,
            "cpu_seconds": found.cpu_seconds,
            "tokens_per_second": found.tokens / found.seconds,
            "tokens_per_cpu_second": found.tokens / found.cpu_seconds,
            "losses": found.losses,
        }
        for arm, found in (("plain", plain), ("fedward", ours))
    }
    write_results(
        "trainer",
        f"Training on flashcard lengths, CPU; losses agree to {apart:.0e}; {ratio:.2f} x",
        ("way", "real tokens/s", "real tokens/CPU s", "CPU s"),
        [
            (
                name,
                f"{found.tokens / found.seconds:,.0f}",
                f"{found.tokens / found.cpu_seconds:,.0f}",
                f"{found.cpu_seconds:.1f}",
            )
            for name, found in (("padded Hugging Face loop", plain), ("fedward", ours))
        ],
        figures | {"shape": shape, "ratio_cpu": ratio, "loss_difference": apart},
    )


if __name__ == "__main__":
    main()
