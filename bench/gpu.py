"""One CUDA GPU, one call, under 9 minutes: QLoRA on a Llama-3-8B of random weights, three ways.

    python -m bench.gpu [--steps 8]         on a machine with a GPU of 40 GB or more
    python -m bench.gpu --cpu               the same on a CPU, with a model of 45 million parameters
    python -m bench.gpu --tiny              the same code on a tiny model on a CPU: a test

Random weights have the kernels, bytes and shapes of real ones; speed and memory are real, and what
a model would learn is not looked at. All arms see the same examples in the same order, as long as
medical flashcards, with LoRA rank 32 on q_proj and v_proj, batch 16, dropout 0 so that the losses
can be compared.

    usual    FlowerTune's medical client: FP4, float32 compute, padded batches, checkpointing always
    trl      TRL's SFTTrainer with packing, NF4, bfloat16; left out where TRL is not installed
    fedward  NF4 with double quantization, bfloat16, rows without padding, checkpointing when needed

Model FLOP utilisation counts 4 operations a parameter and real token (forward, and backward through
frozen weights), recomputation not counted, against `--peak` (989 TFLOP/s: bfloat16 on an H100 or
H200, dense).
"""

import argparse
import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.report import write_results
from bench.trainer import CLIP, RATE, flashcards, padded_batch, plain_step
from hospital_node.trainer import attention
from hospital_node.trainer.adapter import initial
from hospital_node.trainer.model import Resident
from hospital_node.trainer.tokens import TokenSet
from hospital_node.trainer.training import Plan, train
from protocol.study import AdapterSettings

EIGHT_B = {
    "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}  # fmt: skip
TINY = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}  # fmt: skip
SMALL = {
    "vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1536,
    "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
}  # fmt: skip
ADAPTER = AdapterSettings(rank=32, alpha=64, target_modules=("q_proj", "v_proj"))


@dataclass
class Measured:
    """What an arm took; the first step, which chooses kernels, is left out of the time."""

    tokens: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    losses: list[float] = field(default_factory=list)

    @property
    def speed(self) -> float:
        """Real tokens a second."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Job:
    """What all arms do."""

    shape: dict[str, int]
    device: torch.device
    tokens: TokenSet
    batch_size: int

    @property
    def compute(self) -> torch.dtype:
        """What the better arms compute in: bfloat16 on a GPU."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def steps(self) -> int:
        """Optimizer steps, the first included."""
        return len(self.tokens) // self.batch_size


def build(job: Job, kind: str, *, double: bool, compute: torch.dtype) -> tuple[Any, int]:
    """A random Llama, made on the device in bfloat16 and quantized in place; its parameters."""
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if job.device.type == "cuda" else torch.float32)
    try:
        with job.device:
            model = LlamaForCausalLM(LlamaConfig(**job.shape))
    finally:
        torch.set_default_dtype(before)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if not isinstance(child, torch.nn.Linear) or name == "lm_head":
                continue
            small = Linear4bit(
                child.in_features, child.out_features, bias=False, compute_dtype=compute,
                compress_statistics=double, quant_type=kind, device="meta",
            )  # fmt: skip
            small.weight = Params4bit(
                child.weight.data, requires_grad=False, quant_type=kind,
                compress_statistics=double, module=small,
            ).to(job.device)  # fmt: skip
            small.support_avx512bf16_for_cpu = False
            setattr(module, name, small)
    model.is_loaded_in_4bit = True
    model.requires_grad_(False)
    model.eval()
    return model, parameters


def usual(job: Job) -> Measured:
    """FlowerTune's client: `prepare_model_for_kbit_training` and the padded loop."""
    import peft

    model, _ = build(job, "fp4", double=False, compute=torch.float32)
    model = peft.prepare_model_for_kbit_training(
        model, gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    config = peft.LoraConfig(
        r=ADAPTER.rank, lora_alpha=ADAPTER.alpha, task_type="CAUSAL_LM",
        target_modules=list(ADAPTER.target_modules),
    )  # fmt: skip
    model = peft.get_peft_model(model, config)
    _same_beginning(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    model.train()
    found = Measured()
    for step in range(job.steps):
        rows = np.arange(step * job.batch_size, (step + 1) * job.batch_size)
        started = _now(job)
        loss = plain_step(model, optimizer, padded_batch(job.tokens, rows, job.device))
        seconds = _now(job) - started
        found.losses.append(loss)
        if step:
            found.seconds += seconds
            found.tokens += sum(job.tokens.length(int(row)) for row in rows)
    return found


def trl(job: Job) -> Measured:
    """TRL's own trainer over the same tokens; it packs them as it likes."""
    import peft
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    model, _ = build(job, "nf4", double=True, compute=job.compute)
    rows = []
    for row in range(len(job.tokens)):
        ids, prompt = job.tokens[row]
        mask = [0] * prompt + [1] * (len(ids) - prompt)
        rows.append({"input_ids": ids.tolist(), "completion_mask": mask})
    clock: list[float] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.append(_now(job))

    mean = int(job.tokens.starts[-1]) / len(job.tokens)
    settings = SFTConfig(
        output_dir="trl-output", per_device_train_batch_size=1, packing=True,
        max_length=int(mean * job.batch_size), num_train_epochs=1, learning_rate=RATE,
        lr_scheduler_type="constant", max_grad_norm=CLIP, bf16=job.device.type == "cuda",
        use_cpu=job.device.type == "cpu", gradient_checkpointing=False, save_strategy="no",
        report_to=[], logging_steps=1,
        dataset_kwargs={"skip_prepare_dataset": False},
    )  # fmt: skip
    config = peft.LoraConfig(
        r=ADAPTER.rank, lora_alpha=ADAPTER.alpha, task_type="CAUSAL_LM",
        target_modules=list(ADAPTER.target_modules),
    )  # fmt: skip
    trainer = SFTTrainer(
        model, args=settings, train_dataset=Dataset.from_list(rows), peft_config=config,
        callbacks=[Watch()], processing_class=_tokenizer(),
    )  # fmt: skip
    trainer.train()
    share = (len(clock) - 1) / len(clock)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Measured(int(job.tokens.starts[-1] * share), clock[-1] - clock[0], losses=losses)


def _tokenizer() -> Any:
    """One that TRL can ask for its end and padding tokens; the rows are tokens already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>")


def fedward(job: Job) -> Measured:
    """The hospital's trainer as it is."""
    compute = job.compute
    model, parameters = build(job, "nf4", double=True, compute=compute)
    attention.register()
    resident = Resident(Path(), "", parameters, None, model, job.device, compute)
    adapter = resident.use(ADAPTER)
    adapter.load(initial(adapter.manifest, 0))
    found = Measured()
    clock = [_now(job)]

    def on_step(loss: float, tokens: int) -> None:
        now = _now(job)
        if found.losses:
            found.seconds += now - clock[0]
            found.tokens += tokens
        found.losses.append(loss)
        clock[0] = now

    plan = Plan(job.batch_size, RATE, 0.0, CLIP, seed=0)
    train(resident, adapter, job.tokens, np.arange(len(job.tokens)), plan, on_step)
    return found


ARMS: dict[str, Callable[[Job], Measured]] = {"usual": usual, "trl": trl, "fedward": fedward}


def _same_beginning(model: Any) -> None:
    """Give a PEFT model the adapter that fedward begins with."""
    import peft

    saved = peft.get_peft_model_state_dict(model)
    from protocol.manifest import AdapterManifest, TensorSpec

    manifest = AdapterManifest(
        tensors=tuple(TensorSpec(name=n, shape=tuple(saved[n].shape)) for n in sorted(saved))
    )
    vector = initial(manifest, 0)
    for tensor, place in manifest.slices():
        values = torch.from_numpy(vector[place].reshape(tensor.shape))
        with torch.no_grad():
            saved[tensor.name].copy_(values)


def _now(job: Job) -> float:
    """Seconds on a GPU; on a CPU the seconds this process had of it, which others do not change."""
    if job.device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(arm: str, job: Job) -> Measured | str:
    """Run one arm from an empty device; why not, where it cannot be run."""
    gc.collect()
    if job.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        found = ARMS[arm](job)
    except ImportError as error:
        return f"not installed: {error.name}"
    except torch.OutOfMemoryError:
        return "out of memory"
    except Exception as error:
        if arm != "trl":  # another project's trainer: its trouble must not cost our figures
            raise
        return f"{type(error).__name__}: {error}"[:200]
    if job.device.type == "cuda":
        found.peak_bytes = torch.cuda.max_memory_allocated()
    return found


def main(arguments: list[str] | None = None) -> dict[str, Measured | str]:
    """Run the arms, print the table, write `results/gpu.json`."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--cpu", action="store_true", help="a small model on the CPU")
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed")
    parser.add_argument("--peak", type=float, default=989.0, help="the device's TFLOP/s")
    asked = parser.parse_args(arguments)
    gpu = not (asked.tiny or asked.cpu)
    if gpu and not torch.cuda.is_available():
        parser.error("no CUDA GPU here; --cpu measures a small model on the CPU")
    name, shape, size = (
        ("tiny", TINY, 4) if asked.tiny else ("cpu", SMALL, 8) if asked.cpu else ("8B", EIGHT_B, 16)
    )
    steps = 2 if asked.tiny else asked.steps
    tokens = flashcards(size * (steps + 1), shape["vocab_size"])
    job = Job(shape, torch.device("cuda" if gpu else "cpu"), tokens, size)
    found = {arm: measure(arm, job) for arm in ARMS}
    parameters = 8.03e9
    base = found["usual"]
    rows = []
    for arm, result in found.items():
        if isinstance(result, str):
            rows.append((arm, result, "", "", "", ""))
            continue
        ratio = result.speed / base.speed if isinstance(base, Measured) else 0.0
        use = f"{4 * parameters * result.speed / (asked.peak * 1e12):.1%}" if gpu else "-"
        peak = f"{result.peak_bytes / 2**30:.1f}" if gpu else "-"
        rows.append((
            arm, f"{result.speed:,.0f}", f"{ratio:.2f}", peak,
            use, f"{result.losses[0]:.4f} {result.losses[-1]:.4f}",
        ))  # fmt: skip
    write_results(
        f"gpu-{name}" if not gpu else "gpu",
        f"QLoRA on one device, random Llama ({name})",
        ("way", "real tokens/s", "x usual", "peak GiB", "utilisation", "first and last loss"),
        rows,
        {
            arm: result if isinstance(result, str) else asdict(result) | {"speed": result.speed}
            for arm, result in found.items()
        },
    )
    return found


if __name__ == "__main__":
    main()
