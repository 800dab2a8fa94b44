"""Bytes to 95 % accuracy on a small federation, for every codec and every aggregator.

    python -m bench.testbed [--quick] [--group pairs|codecs|aggregators]

Eight sites with very different rows train LoRA (r 8, all linear layers) on a base of 0.2 million
parameters for a task that none of them holds whole; see `substitution` and `small_federation` for
what is real in it. It tells methods apart in seconds a run; it says nothing about the quality of
large models.

Each method's learning rate is the one of its grid (three values, in the JSON) that needs the
fewest rounds to 95 % on a seed of its own. Three other seeds, each with its own data, task and
start, then give mean and standard deviation, and the accuracy after the last round. For the
adaptive server methods the grid is of the server's rate. MB are 10^6 payload bytes of all sites,
both directions, up to the round that reached 95 %. Compressing with zstd loses nothing, so it is
counted beside the plain payloads of the same run. The pair that is called the best is the one that
needed the fewest bytes on the tuning seed.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import substitution
from .report import console, write_results
from .small_federation import TARGET, Method, Run, load_resident, run

SEEDS, TUNING_SEED = (0, 1, 2), 100
ROUNDS, QUICK_ROUNDS = 12, 8
PROCESSES = 2
Rates = dict[str, float]

# Of the sites; with one factor frozen a change has half the ways to go, so the rates are higher.
RATES = tuple({"learning_rate": rate} for rate in (1e-2, 5e-3, 2e-2))
HALF_RATES = tuple({"learning_rate": rate} for rate in (2e-2, 1e-2, 4e-2))
# Of the server; the sites' is FedAvg's usual one. FedAdagrad's steps shrink, so they begin larger.
SERVER_RATES = {
    strategy: tuple({"learning_rate": 1e-2, "server_learning_rate": rate} for rate in rates)
    for strategy, rates in {
        "fedadagrad": (1e-1, 3e-2, 3e-1),
        "fedyogi": (3e-2, 1e-2, 1e-1),
        "fedadam": (3e-2, 1e-2, 1e-1),
    }.items()
}

BASELINE = Method("fedavg")
CODECS = [
    Method(f"fedavg, {codec}", up=codec, down=codec)
    for codec in ("fp16", "bf16", "int8", "int4", "nf4", "int2", "topk-0.1")
]
STRATEGIES = [
    Method(strategy, {"strategy": strategy})
    for strategy in (
        "fedprox",
        "fedavgm",
        "fedadagrad",
        "fedyogi",
        "fedadam",
        "scaffold",
        "median",
        "trimmed-mean",
        "krum",
        "multi-krum",
    )
]
FACTORS = [Method(lora, {"lora": lora}) for lora in ("flexlora", "ffa", "rolora", "fedex", "flora")]
WEIGHTINGS = [
    Method("equal weights", {"weighting": "equal"}),
    Method("inverse-loss weights", {"weighting": "inverse-loss"}),
    Method("weights by the step", {"normalise_steps": True}),
]
PAIRS = [
    Method("fedavgm, int2", {"strategy": "fedavgm"}, "int2", "int2"),
    Method("flexlora, int2 / int4", {"lora": "flexlora"}, "int2", "int4"),
    Method("ffa, int2", {"lora": "ffa"}, "int2", "int2"),
    Method("ffa + fedavgm, int2", {"lora": "ffa", "strategy": "fedavgm"}, "int2", "int2"),
]
GROUPS = {
    "baseline": [BASELINE],
    "pairs": PAIRS,
    "codecs": CODECS,  # of FedAvg
    "aggregators": [*STRATEGIES, *FACTORS, *WEIGHTINGS],  # in fp32
}
QUICK = [BASELINE, CODECS[5], FACTORS[0], *PAIRS]


def grid(method: Method) -> tuple[Rates, ...]:
    """The rates tried, the usual one first."""
    usual = HALF_RATES if method.aggregation.get("lora") in {"ffa", "rolora"} else RATES
    return SERVER_RATES.get(method.aggregation.get("strategy", ""), usual)


_resident: Any = None  # of a worker process


def start_worker(base: Path) -> None:
    """Load the base once; one thread each, so that two processes do not get in each other's way."""
    from transformers.utils import logging

    global _resident
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    _resident = load_resident(base)


def tune(method: Method, rounds: int) -> Run:
    """The best of the grid on the tuning seed; a rate ends once it cannot be the best."""
    best: Run | None = None
    for rates in grid(method):
        limit = best.reached() if best and best.reached() else rounds
        found = run(
            _resident,
            method,
            rates,
            TUNING_SEED,
            rounds=limit or rounds,
            enough=lambda made: made.reached() is not None,
        )
        if best is None or _rank(found) < _rank(best):
            best = found
    assert best is not None
    return best


def _rank(found: Run) -> tuple[float, float]:
    return found.reached() or float("inf"), -found.accuracy[-1]


def measure(work: tuple[Method, Rates, int], rounds: int) -> Run:
    """One run to the end."""
    method, rates, seed = work
    return run(_resident, method, rates, seed, rounds=rounds)


def run_all(
    base: Path, methods: Sequence[Method], *, seeds: Sequence[int], rounds: int, tuned: bool
) -> tuple[dict[str, Run], dict[str, list[Run]]]:
    """The tuning run and the measured runs of each method, two at a time."""
    # numpy's threads too: of matrices this small they make each process slower.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, context, start_worker, (base,)) as pool:
        tuning: dict[str, Run] = {}
        if tuned:
            for found in pool.map(partial(tune, rounds=rounds), methods):
                tuning[found.method] = found
                console.print(f"tuned {found.method}: {found.rates}, round {found.reached()}")
        rates = {m.name: tuning[m.name].rates if tuned else grid(m)[0] for m in methods}
        work = [(method, rates[method.name], seed) for method in methods for seed in seeds]
        runs: dict[str, list[Run]] = {}
        for found in pool.map(partial(measure, rounds=rounds), work):
            runs.setdefault(found.method, []).append(found)
            console.print(
                f"{found.method}, seed {found.seed}: round {found.reached()}, "
                f"{found.accuracy[-1]:.1%}"
            )
    return tuning, runs


def _spread(values: Sequence[float | None], form: str, scale: float = 1.0) -> str:
    """Mean and standard deviation; a dash where a seed did not get there."""
    known = [value * scale for value in values if value is not None]
    if len(known) < len(values):
        return f"{len(known)} of {len(values)} seeds" if known else "-"
    mean = f"{statistics.mean(known):{form}}"
    return f"{mean} ± {statistics.stdev(known):{form}}" if len(known) > 1 else mean


def fewer(runs: Sequence[Run], baseline: Sequence[Run], *, zstd: bool) -> float | None:
    """How many times fewer bytes than the baseline's plain ones: the ratio of the means."""
    ours = [found.bytes_to(zstd=zstd) for found in runs]
    theirs = [found.bytes_to() for found in baseline]
    if None in ours or None in theirs:
        return None
    return sum(filter(None, theirs)) / sum(filter(None, ours))


def table(groups: dict[str, list[Method]], runs: dict[str, list[Run]]) -> list[list[str]]:
    """One row a method, with a heading for each group."""
    baseline, rows = runs[BASELINE.name], []
    for title, methods in groups.items():
        rows.append([f"[bold]{title}", *[""] * 7])
        for method in methods:
            found = runs[method.name]
            ratios = [fewer(found, baseline, zstd=zstd) for zstd in (False, True)]
            rows.append(
                [
                    f"  {method.name}",
                    " / ".join(f"{rate:g}" for rate in found[0].rates.values()),
                    _spread([one.reached() for one in found], ".1f"),
                    _spread([one.bytes_to() for one in found], ".2f", 1e-6),
                    "-" if ratios[0] is None else f"{ratios[0]:.1f}",
                    _spread([one.bytes_to(zstd=True) for one in found], ".2f", 1e-6),
                    "-" if ratios[1] is None else f"{ratios[1]:.1f}",
                    _spread([one.accuracy[-1] for one in found], ".2f", 100),
                ]
            )
    return rows


def verdict(best: str, runs: dict[str, list[Run]]) -> dict[str, Any]:
    """The best pair beside the baseline."""
    ours, plain = runs[best], runs[BASELINE.name]
    final = [statistics.mean(one.accuracy[-1] for one in arm) for arm in (ours, plain)]
    return {
        "best": best,
        "fewer_bytes": fewer(ours, plain, zstd=True),
        "accuracy": final[0],
        "accuracy_fedavg": final[1],
        "points_lost": 100 * (final[1] - final[0]),
    }


def main() -> None:
    """Pretrain the base, tune, measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.testbed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few methods, no tuning, one seed")
    parser.add_argument("--group", choices=GROUPS, help="only these, beside the baseline")
    chosen = parser.parse_args()
    quick = chosen.quick
    groups = {"a few, not tuned": QUICK} if quick else GROUPS
    if chosen.group:
        groups = {name: GROUPS[name] for name in ("baseline", chosen.group)}
    methods = [method for group in groups.values() for method in group]
    rounds, began = QUICK_ROUNDS if quick else ROUNDS, time.monotonic()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fedward-bench-") as folder:
        taught = substitution.pretrain(Path(folder))
        console.print(f"base: {taught:.1%} on the tasks it was taught")
        seeds = SEEDS[:1] if quick else SEEDS
        tuning, runs = run_all(Path(folder), methods, seeds=seeds, rounds=rounds, tuned=not quick)
    first = tuning or {name: found[0] for name, found in runs.items()}
    reached = {name: size for name in first if (size := first[name].bytes_to(zstd=True))}
    best = verdict(min(reached, key=lambda name: reached[name]), runs)
    write_results(
        "-".join(["testbed", *(["quick"] * quick), *filter(None, [chosen.group])]),
        f"Small federation, {rounds} rounds, {len(seeds)} seed(s): payload MB to {TARGET:.0%}",
        ["method", "rate", "rounds", "MB", "fewer", "MB, zstd", "fewer", "final, %"],
        table(groups, runs),
        {
            "verdict": best,
            "grids": {method.name: grid(method) for method in methods},
            "tuning": {name: asdict(found) for name, found in tuning.items()},
            "runs": {name: [asdict(one) for one in found] for name, found in runs.items()},
            "seconds": time.monotonic() - began,
        },
    )
    console.print(
        f"{best['best']} with zstd: {best['fewer_bytes']:.1f} times fewer bytes than fp32 FedAvg, "
        f"{best['points_lost']:+.2f} points of accuracy lost; {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
