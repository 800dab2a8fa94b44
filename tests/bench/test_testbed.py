"""Every codec and every aggregator learns on the small federation, and its bytes are true."""

import numpy as np
import pytest
import torch

from bench import substitution, testbed
from bench.small_federation import SITES, Method, Run, load_resident, run
from hospital_node.trainer.model import Resident

METHODS = {method.name: method for group in testbed.GROUPS.values() for method in group}
ROUNDS = 2


@pytest.fixture(scope="module")
def resident(tmp_path_factory: pytest.TempPathFactory) -> Resident:
    """The base, taught the old tasks in a few seconds."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base")
    assert substitution.pretrain(folder, steps=150) > 0.95
    return load_resident(folder)


def trained(resident: Resident, name: str, rounds: int = ROUNDS) -> Run:
    """A short run at the first rate of the method's grid."""
    method = METHODS[name]
    return run(resident, method, testbed.grid(method)[0], 0, rounds=rounds)


@pytest.mark.parametrize("name", METHODS)
def test_it_learns(resident: Resident, name: str) -> None:
    """After two rounds of five steps it is at several times the start, chance (1 letter in 52)."""
    made = trained(resident, name)
    assert made.start < 0.04
    assert made.accuracy[-1] > made.start + 0.04, made.accuracy


def test_a_run_leaves_the_base_as_it_was(resident: Resident) -> None:
    """FLoRA's merges are taken off again, and a run repeated gives the same."""
    before = trained(resident, "fedavg", 1).accuracy
    flora = trained(resident, "flora", 2).accuracy
    assert trained(resident, "fedavg", 1).accuracy == before
    assert trained(resident, "flora", 2).accuracy == flora


def test_bytes_are_those_of_the_payloads(resident: Resident) -> None:
    """Four bytes a value and a header each way with fp32; with int2 a fourteenth from the start,
    because the first adapter is drawn at the sites."""
    assert resident.adapter is not None
    whole = 4 * resident.adapter.manifest.numel
    for wire in trained(resident, "fedavg", 2).wires:
        assert wire.up == wire.down
        assert SITES * whole < wire.up < SITES * (whole + 64)
    first, second = trained(resident, "fedavg, int2", 2).wires
    assert first.up == first.down == second.up == second.down < SITES * whole / 14
    scaffold = trained(resident, "scaffold", 1).wires[0]
    assert SITES * 2 * whole < scaffold.up < SITES * (2 * whole + 64)


def test_sites_differ_and_hold_all_letters_together() -> None:
    """Half of a site's letters are a few of the alphabet, and no letter is nowhere."""
    sites = substitution.sites(SITES, seed=0, alpha=0.1, total=4096)
    assert sum(site.share for site in sites) == pytest.approx(1)
    counts = np.zeros((SITES, substitution.LETTERS))
    for place, site in enumerate(sites):
        of = site.tokens.ids.reshape(len(site.tokens), -1)
        letters = of[:, 2 : 2 + substitution.LENGTH] - substitution.FIRST_LETTER
        counts[place] = np.bincount(letters.reshape(-1), minlength=substitution.LETTERS)
    assert (counts.sum(axis=0) > 0).all()
    most = np.sort(counts / counts.sum(axis=1, keepdims=True), axis=1)[:, ::-1]
    assert (most[:, :10].sum(axis=1) > 0.7).all()


def test_tuning_takes_the_rate_that_arrives_first(
    resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a grid with one good rate that one is chosen, wherever it stands."""
    monkeypatch.setattr(testbed, "_resident", resident)
    rates = tuple({"learning_rate": rate} for rate in (1e-5, 1e-2, 1e-6))
    monkeypatch.setattr(testbed, "grid", lambda _: rates)
    assert testbed.tune(Method("any"), 2).rates == {"learning_rate": 1e-2}
