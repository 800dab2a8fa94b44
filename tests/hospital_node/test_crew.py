"""Several processes that train one batch together: the same steps, and what if one dies."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from hospital_node.trainer.adapter import initial
from hospital_node.trainer.crew import Crew, processes
from hospital_node.trainer.errors import Cancelled, Refusal
from hospital_node.trainer.model import Shelf
from hospital_node.trainer.preference import Pairs, ask_base, make_pairs
from hospital_node.trainer.tokens import TokenSet, tokenize_pairs
from hospital_node.trainer.training import Done, Plan, train
from protocol.messages import Task
from protocol.states import Reason
from protocol.study import AdapterSettings

from .lab import SiteFolder, Trainer, request, study
from .test_model import sequences, settings
from .test_preference import PAIRED
from .test_tasks import Lab

TOKENS = sequences(5, 30, 12, 9, 21, 14, 7, 16)
ROWS = np.array([3, 1, 4, 0, 5, 2, 6, 7, 1, 2, 3, 4, 0])  # the last batch has one row alone
PLAN = Plan(batch_size=4, learning_rate=0.01, weight_decay=0.01, max_grad_norm=1.0, seed=0)
ADAPTER = AdapterSettings(rank=4, alpha=8)


@pytest.fixture(scope="module")
def made(
    bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Shelf, Crew]]:
    """A site with two processes on its CPU; whatever a test does to them, the next finds them."""
    site = SiteFolder(tmp_path_factory.mktemp("crew"), bases("llama")).settings(
        trainer="devices = 2"
    )
    crew = Crew(site)
    yield Shelf(site), crew
    crew.close()


def run(
    made: tuple[Shelf, Crew],
    examples: TokenSet | Pairs = TOKENS,
    *,
    plan: Plan = PLAN,
    rows: np.ndarray = ROWS,
    together: bool = True,
    on_step: Callable[[float, int], None] = lambda *_: None,
    quantization: str = "none",
) -> tuple[Done, np.ndarray]:
    """A round from the first adapter; what was done, and the adapter after it."""
    shelf, crew = made
    resident = shelf.get(settings(quantization))
    adapter = resident.use(ADAPTER)
    first = initial(adapter.manifest, 0) + np.float32(0.01)
    adapter.load(first)
    if isinstance(examples, Pairs):
        ask_base(resident, examples, rows, lambda: None)
    if not together:
        return train(resident, adapter, examples, rows, plan, on_step), adapter.read()
    model = settings(quantization)
    with crew.work(model, ADAPTER, first, examples, rows, plan) as team:
        assert team is not None
        done = train(resident, adapter, examples, rows, plan, on_step, team)
    return done, adapter.read()


def same(ours: tuple[Done, np.ndarray], theirs: tuple[Done, np.ndarray]) -> None:
    """Losses, counts and weights agree to the rounding of sums in another order."""
    assert ours[0].losses == pytest.approx(theirs[0].losses, rel=1e-5)
    assert (ours[0].tokens, ours[0].examples) == (theirs[0].tokens, theirs[0].examples)
    # Adam divides by the gradient's size, so where that is near zero a rounding error is a step.
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-3)
    assert np.abs(ours[1] - theirs[1]).mean() < 1e-6


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_two_processes_do_the_steps_of_one(made: tuple[Shelf, Crew], quantization: str) -> None:
    """The same losses and weights, with a batch that only one process has a row of, twice over."""
    alone = run(made, together=False, quantization=quantization)
    same(run(made, quantization=quantization), alone)
    pids = made[1].pids
    same(run(made, quantization=quantization), alone)
    assert made[1].pids == pids, "a second round finds the same processes"
    assert len(pids) == 1


def test_terms_that_are_added_and_pairs_agree_too(made: tuple[Shelf, Crew]) -> None:
    """FedProx, SCAFFOLD's correction and mean gradient, and DPO."""
    shelf, _ = made
    resident = shelf.get(settings("none"))
    numel = resident.use(ADAPTER).manifest.numel
    correction = np.random.default_rng(0).normal(0, 0.01, numel).astype(np.float32)
    plan = Plan(4, 0.01, 0.0, 1.0, 0, proximal_mu=0.5, correction=correction)
    alone = run(made, plan=plan, together=False)
    both = run(made, plan=plan)
    same(both, alone)
    assert alone[0].gradient is not None
    assert both[0].gradient is not None
    np.testing.assert_allclose(both[0].gradient, alone[0].gradient, atol=1e-5)
    pairs = make_pairs(tokenize_pairs(resident.tokenizer, "alpaca", PAIRED, 128), None)
    rows = np.array([5, 0, 1, 2, 3, 4, 4])
    same(run(made, pairs, rows=rows), run(made, pairs, rows=rows, together=False))


def test_time_is_up_for_all(made: tuple[Shelf, Crew]) -> None:
    """The trainer's clock ends the round in every process, and the next round goes on."""
    done, _ = run(made, plan=Plan(4, 0.01, 0.0, 1.0, 0, seconds=1e-9))
    assert len(done.losses) == 1
    assert len(run(made)[0].losses) == 4


def test_a_killed_process_fails_the_round_and_is_started_again(
    made: tuple[Shelf, Crew],
) -> None:
    """The task gets a reason, nobody waits for the dead, and the next round is whole."""
    shelf, crew = made
    expected = run(made)
    victim, loads = crew.pids[0], shelf.loads

    def kill(*_: Any) -> None:
        os.kill(victim, signal.SIGKILL)

    began = time.monotonic()
    with pytest.raises(Refusal, match="ended with -9 while it worked") as caught:
        run(made, on_step=kill, rows=np.tile(ROWS[:12], 20))
    assert caught.value.reason is Reason.TRAINER_ERROR
    assert time.monotonic() - began < 60
    same(run(made), expected)
    assert victim not in crew.pids
    os.kill(crew.pids[0], signal.SIGKILL)
    psutil.wait_procs([psutil.Process(crew.pids[0])], timeout=10)
    same(run(made), expected)
    assert shelf.loads == loads, "the trainer's own base stays"


def test_what_stops_the_trainer_stops_its_helpers(made: tuple[Shelf, Crew]) -> None:
    """A cancelled round leaves no process waiting for a sum, and keeps its own exception."""

    def cancel(*_: Any) -> None:
        raise Cancelled

    run(made)
    before = made[1].pids
    with pytest.raises(Cancelled):
        run(made, on_step=cancel)
    assert made[1].pids == []
    assert not any(psutil.pid_exists(pid) for pid in before)


def test_a_helpers_reason_is_the_tasks(made: tuple[Shelf, Crew]) -> None:
    """A base that a helper cannot read is said as the trainer would say it."""
    shelf, crew = made
    resident = shelf.get(settings("none"))
    adapter = resident.use(ADAPTER)
    first = adapter.read()
    wrong = settings("none", sha256="0" * 64)
    with (
        pytest.raises(Refusal, match=r"a helper process: .*the weights hash to") as caught,
        crew.work(wrong, ADAPTER, first, TOKENS, ROWS, PLAN) as team,
    ):
        train(resident, adapter, TOKENS, ROWS, PLAN, lambda *_: None, team)
    assert caught.value.reason is Reason.MODEL_MISMATCH


def test_a_round_at_a_site_with_two_processes(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """The task's update is that of a site with one process."""
    updates = []
    for devices in (1, 2):
        folder = SiteFolder(tmp_path / str(devices), bases("llama"))
        lab = Lab(folder, trainer=f"devices = {devices}")
        try:
            manifest = lab.prepare(study(), evaluate=False).manifest
            _, delta = lab.train(study(), initial(manifest, 42), 1)
            updates.append(delta)
            assert len(lab.tasks.crew.pids) == devices - 1
        finally:
            lab.tasks.crew.close()
    np.testing.assert_allclose(updates[0], updates[1], atol=1e-3)
    assert np.abs(updates[0] - updates[1]).mean() < 1e-6


def test_a_killed_trainer_leaves_no_helper(site: SiteFolder, start: Callable[..., Trainer]) -> None:
    """Nothing keeps a GPU's memory once the trainer is gone, however it went."""
    trainer = start(site, trainer="devices = 2")
    reply, _ = trainer.client.ask(request(Task.PREPARE, study()))
    assert reply.reason is None
    helpers = psutil.Process(trainer.process.pid).children()
    assert len(helpers) == 1
    trainer.stop(signal.SIGKILL)
    gone, _ = psutil.wait_procs(helpers, timeout=30)
    assert gone == helpers


def test_how_many_processes(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """One on a CPU, unless a number is given; and no group of its own kind is left in torch."""
    import torch

    folder = SiteFolder(tmp_path / "h", bases("llama"))
    assert processes(folder.settings()) == 1
    assert processes(folder.settings(trainer="devices = 3")) == 3
    assert not torch.distributed.is_initialized()
