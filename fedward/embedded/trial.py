"""The proof that the demo shows something: base, each hospital alone, and the federation.

    python -m fedward.embedded.trial --seeds 0 1 2

A few plain loops in one process (NF4 base, LoRA by PEFT, FedAvg of the factors), without Flower,
the outbound guard or certificates: what the real system should reach on the same data with the
same `DEMO` settings, and quick enough to try other settings.
"""

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, BitsAndBytesConfig, LlamaForCausalLM

from fedward.embedded import DEMO, DemoSettings, corpus
from fedward.embedded.model import WEIGHTS, answer_loss, collate, encode

Row = tuple[list[int], list[int]]
Adapter = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Score:
    """Accuracy on the held-out items, as shares between 0 and 1."""

    choice: float
    """Multiple choice: the option of highest summed log-likelihood is the right one."""
    free: float
    """Free answers: every token of the answer, its end included, is the most likely one."""

    @property
    def both(self) -> float:
        """Mean of the two."""
        return (self.choice + self.free) / 2


@dataclass(frozen=True)
class Trial:
    """What one seed gave."""

    base: Score
    alone: tuple[Score, ...]
    federated: Score
    by_round: tuple[Score, ...]
    alone_seconds: float
    """CPU seconds of training, all hospitals together, on one thread."""
    federated_seconds: float
    evaluation_seconds: float
    """CPU seconds of one evaluation, on one thread."""


def load_base(weights: Path = WEIGHTS, *, threads: int = 1) -> tuple[Any, Any]:
    """The tokenizer and the base model, its Linear layers quantized to NF4.

    It sets torch's threads for the whole process.
    """
    torch.set_num_threads(threads)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = LlamaForCausalLM.from_pretrained(
        weights, quantization_config=quantization, dtype=torch.float32, device_map="cpu"
    )
    for module in model.modules():
        # On a processor with AVX512-BF16, bitsandbytes 0.50 repacks a layer at its first forward
        # without gradients, for good; the packed kernel has no backward, so that every later
        # training step would lose the gradient that runs through frozen layers, with a warning.
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return AutoTokenizer.from_pretrained(weights), model


def with_adapter(base: Any, settings: DemoSettings, *, seed: int) -> Any:
    """`base` (changed in place) with a fresh LoRA adapter; its factors are float32."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=settings.target_modules,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, config)


def get_adapter(model: Any) -> Adapter:
    """A copy of the trainable tensors by name."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def set_adapter(model: Any, adapter: Mapping[str, torch.Tensor]) -> None:
    """Overwrite the trainable tensors."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(adapter[name])


def average(adapters: Sequence[Adapter]) -> Adapter:
    """FedAvg of the factors, every hospital with the same weight."""
    return {
        name: torch.stack([adapter[name] for adapter in adapters]).mean(0) for name in adapters[0]
    }


def train(
    model: Any, rows: Sequence[Row], settings: DemoSettings, *, steps: int, seed: str, pad: int
) -> None:
    """`steps` AdamW steps from a fresh optimizer, on batches drawn without putting back."""
    rng = random.Random(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    llama = model.get_base_model()
    order: list[int] = []
    for _ in range(steps):
        if len(order) < settings.batch_size:
            order = rng.sample(range(len(rows)), len(rows))
        batch = [rows[order.pop()] for _ in range(settings.batch_size)]
        answer_loss(llama, collate(batch, pad)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def evaluate(model: Any, tokenizer: Any, items: Sequence[corpus.Item], *, batch: int = 64) -> Score:
    """Score the held-out items; `batch` is rows (one per option) in a forward pass."""
    rows: list[Row] = []
    for item in items:
        answers = item.choices or (item.output,)
        rows += [encode(tokenizer, replace(item, output=answer)) for answer in answers]
    likelihood, exact = _score_rows(model.get_base_model(), rows, tokenizer.pad_token_id, batch)
    place, choice, free = 0, [], []
    for item in items:
        if item.choices:
            scores = likelihood[place : place + len(item.choices)]
            choice.append(int(torch.tensor(scores).argmax()) == item.answer)
        else:
            free.append(exact[place])
        place += max(1, len(item.choices))
    return Score(sum(choice) / len(choice), sum(free) / len(free))


def _score_rows(
    llama: Any, rows: Sequence[Row], pad: int, batch: int
) -> tuple[list[float], list[bool]]:
    """For each row: log-likelihood of its answer (nats), and whether greedy decoding writes it."""
    likelihood, exact = [0.0] * len(rows), [False] * len(rows)
    # Rows of like length go together, so that little of a batch is padding.
    order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]) + len(rows[row][1]))
    for start in range(0, len(rows), batch):
        places = order[start : start + batch]
        ids, mask, labels = collate([rows[place] for place in places], pad)
        hidden = llama.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        wanted = labels[:, 1:] >= 0
        logits, targets = llama.lm_head(hidden[:, :-1][wanted]), labels[:, 1:][wanted]
        row = wanted.nonzero()[:, 0]
        loss = cross_entropy(logits.float(), targets, reduction="none")
        total = torch.zeros(len(places)).index_add_(0, row, loss)
        wrong = torch.zeros(len(places)).index_add_(0, row, (logits.argmax(-1) != targets).float())
        for index, place in enumerate(places):
            likelihood[place] = -float(total[index])
            exact[place] = not wrong[index]
    return likelihood, exact


def run_trial(
    tokenizer: Any, base: Any, settings: DemoSettings = DEMO, *, seed: int, alone: bool = True
) -> Trial:
    """Train and score one seed; `base` must carry no adapter and carries none afterwards."""
    world, sites = corpus.World(seed), settings.hospitals
    data = [
        corpus.hospital_items(
            world,
            position,
            sites,
            rows=settings.rows_per_hospital,
            own_share=settings.own_share,
            seed=seed,
        )
        for position in range(sites)
    ]
    rows = [[encode(tokenizer, item) for item in items] for items in data]
    held_out = corpus.held_out_items(world, sites, rows=settings.held_out_rows, seed=seed)
    model = with_adapter(base, settings, seed=seed)
    fresh = get_adapter(model)
    started = time.process_time()
    base_score = evaluate(model, tokenizer, held_out)
    evaluation_seconds = time.process_time() - started

    def learn(site: int, rounds: int, start: Adapter) -> Adapter:
        """One hospital's work of one round, from the adapter `start`."""
        set_adapter(model, start)
        name = f"{seed}/{site}/{rounds}"
        pad = tokenizer.pad_token_id
        train(model, rows[site], settings, steps=settings.steps, seed=name, pad=pad)
        return get_adapter(model)

    alone_scores, alone_seconds = [], 0.0
    for site in range(sites if alone else 0):
        adapter = fresh
        started = time.process_time()
        for number in range(settings.rounds):
            adapter = learn(site, number, adapter)
        alone_seconds += time.process_time() - started
        alone_scores.append(evaluate(model, tokenizer, held_out))

    adapter, by_round, federated_seconds = fresh, [], 0.0
    for number in range(settings.rounds):
        started = time.process_time()
        adapter = average([learn(site, number, adapter) for site in range(sites)])
        federated_seconds += time.process_time() - started
        set_adapter(model, adapter)
        by_round.append(evaluate(model, tokenizer, held_out))
    model.unload()
    return Trial(
        base=base_score,
        alone=tuple(alone_scores),
        federated=by_round[-1],
        by_round=tuple(by_round),
        alone_seconds=alone_seconds,
        federated_seconds=federated_seconds,
        evaluation_seconds=evaluation_seconds,
    )


def _line(score: Score) -> str:
    return f"choice {score.choice:6.1%}   free {score.free:6.1%}"


def main() -> None:
    """Run the trial for some seeds and print every accuracy and time."""
    parser = argparse.ArgumentParser(prog="python -m fedward.embedded.trial")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    tokenizer, base = load_base(args.weights)
    for seed in args.seeds:
        trial = run_trial(tokenizer, base, seed=seed)
        print(f"seed {seed}")
        print(f"  base         {_line(trial.base)}")
        for site, score in enumerate(trial.alone):
            print(f"  alone {site}      {_line(score)}")
        for number, score in enumerate(trial.by_round, start=1):
            print(f"  round {number:2}     {_line(score)}")
        print(
            f"  CPU seconds  alone {trial.alone_seconds:.1f}, federated "
            f"{trial.federated_seconds:.1f}, one evaluation {trial.evaluation_seconds:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
