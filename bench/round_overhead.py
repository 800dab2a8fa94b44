"""What a round costs beyond the training itself: fedward's node beside the usual ClientApp.

    python -m bench.round_overhead [--quick]

Both arms run in this one command, one after the other: three sites on loopback with TLS and node
authentication, the same base in NF4, LoRA on all linear layers, the same steps and batch size.
Overhead is a round's wall clock less the slowest site's own training. In the usual arm each message
starts Python, imports torch, transformers and peft, loads and quantizes the base, trains and exits;
in ours the base is loaded once, which a counter shows.
"""

import argparse
import contextlib
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fedward import launcher
from fedward.control import Address, ControlPlane
from fedward.demo import MODEL
from fedward.embedded.corpus import write_hospital_data
from fedward.federation import FederationSettings, LocalSite, prepare
from fedward.watch import follow
from protocol.events import RoundFinished, SiteResult
from protocol.site import DataSettings
from protocol.study import StudySettings

from . import usual_way
from .report import console, write_results

SITES = ("a", "b", "c")
STEPS, BATCH, RANK = 4, 8, 8


def big_base(folder: Path) -> Path:
    """A Llama-architecture base of about 100 M random parameters with the embedded tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=2560,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    console.print(f"base: {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters")
    return folder


def ours(folder: Path, base: Path, data: list[Path], rounds: int) -> dict[str, float]:
    """Run a study of `rounds` rounds through fedward; overhead and base loads."""
    study = StudySettings.model_validate(
        {
            "name": "overhead",
            "model": {"base": str(base), "quantization": "nf4"},
            "adapter": {"rank": RANK, "alpha": 2 * RANK},
            "training": {"steps": STEPS, "batch_size": BATCH, "learning_rate": 1e-3},
            "evaluation": {"max_examples": 1, "every": 100_000},
            "rounds": {"count": rounds, "minimum_sites": 3, "deadline_seconds": 600},
        }
    )
    with _federation(folder, data) as plane:
        study_id = plane.submit(study)
        detail = follow(plane, study_id, console)
        events = plane.events(study_id)
    finished = [event for event in events if isinstance(event, RoundFinished)]
    loads = max(e.health.base_loads for e in events if isinstance(e, SiteResult) and e.health)
    training = _slowest_training(events)
    overheads = [event.seconds - training[event.round] for event in finished]
    if str(detail.state) != "finished" or len(finished) != rounds:
        raise RuntimeError(f"the study did not finish: {detail.verdict}")
    return {
        "overhead": statistics.median(overheads),
        "training": statistics.median(training.values()),
        "rounds": len(finished),
        "base_loads": loads,
    }


def _slowest_training(events: list[object]) -> dict[int, float]:
    slowest: dict[int, float] = {}
    for event in events:
        if isinstance(event, SiteResult):
            slowest[event.round] = max(slowest.get(event.round, 0.0), event.timing.train)
    return slowest


@contextlib.contextmanager
def _federation(folder: Path, data: list[Path]) -> Iterator[ControlPlane]:
    settings = FederationSettings(
        sites={
            name: LocalSite(data=DataSettings(train=(file,)), device="cpu", threads=1)
            for name, file in zip(SITES, data, strict=True)
        }
    )
    federation = prepare(folder, settings)
    launcher.start_in_background(federation)
    try:
        plane = ControlPlane(Address.of(federation))
        plane.wait_until_ready(60)
        yield plane
    finally:
        launcher.stop_running(federation.layout)


def usual(folder: Path, base: Path, data: list[Path], rounds: int) -> dict[str, float]:
    """Run `rounds` rounds the usual way; overhead."""
    rows = usual_way.rounds(folder, base, data, count=rounds, steps=STEPS, batch_size=BATCH)
    return {
        "overhead": statistics.median(row["wall"] - row["training"] for row in rows),
        "training": statistics.median(row["training"] for row in rows),
        "rounds": len(rows),
        "base_loads": len(rows),
    }


def main() -> None:
    """Compare both arms on the demo's base and on one of 100 M parameters."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the demo's base only, fewer rounds")
    quick: bool = parser.parse_args().quick
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="fedward-bench-") as name:
        root = Path(name)
        write_hospital_data(root / "data", SITES)
        data = [root / "data" / site / "train.jsonl" for site in SITES]
        bases = {"demo base": MODEL}
        if not quick:
            bases["100 M base"] = big_base(root / "base")
        for index, (label, base) in enumerate(bases.items()):
            arms = {}
            for arm, run in (("fedward", ours), ("usual", usual)):
                folder = root / f"{arm}-{index}"
                folder.mkdir()
                arms[arm] = run(folder, base, data, (6 if arm == "fedward" else 2) if quick
                                else (8 if arm == "fedward" else 3))  # fmt: skip
                shutil.rmtree(folder, ignore_errors=True)
            results[label] = arms
    write_results(
        "round_overhead",
        "Seconds of a round beyond training (median), three sites",
        ("base", "fedward", "usual way", "ratio", "base loads", "usual loads"),
        [
            (
                label,
                f"{arms['fedward']['overhead']:.2f}",
                f"{arms['usual']['overhead']:.2f}",
                f"1/{arms['usual']['overhead'] / arms['fedward']['overhead']:.1f}",
                f"{arms['fedward']['base_loads']:.0f} in {arms['fedward']['rounds']:.0f} rounds",
                f"{arms['usual']['base_loads']:.0f} in {arms['usual']['rounds']:.0f} rounds",
            )
            for label, arms in results.items()
        ],
        results,
    )


if __name__ == "__main__":
    main()
