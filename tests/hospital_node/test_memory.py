"""What a site remembers from round to round: what encodings lost, and SCAFFOLD's variate."""

from pathlib import Path

import numpy as np
import pytest

from hospital_node.trainer.adapter import initial
from hospital_node.trainer.memory import Memory
from protocol.codec import encode_payload
from protocol.manifest import AdapterManifest, TensorSpec

from .lab import SiteFolder, study
from .test_tasks import Lab, flat

MANIFEST = AdapterManifest(tensors=(TensorSpec(name="a.lora_A.weight", shape=(2, 2)),))
LOST = np.array([1, -2, 3, 0.5], np.float32)


@pytest.fixture
def lab(site: SiteFolder) -> Lab:
    """The hospital north with the tiny Llama."""
    return Lab(site)


def test_nothing_is_lost_over_the_rounds(lab: Lab) -> None:
    """All that was sent and the last residual add up to all the changes, exactly once each."""
    plain, lossy = study(), study(codec={"up": "topk-0.1"})
    manifest = lab.prepare(plain).manifest
    vector = initial(manifest, 0)
    changes, sent_all = np.zeros(manifest.numel), np.zeros(manifest.numel)
    for number in (1, 2, 3):
        _, change = lab.train(plain, vector, number)
        answer, wanted = lab.train(lossy, vector, number)
        assert answer.update is not None
        assert answer.update.after is not None
        _, _, sent = encode_payload("topk-0.1", wanted, manifest, "delta")
        answer.update.after(sent)
        changes, sent_all = changes + change, sent_all + sent
        lost = Memory(lab.settings.state / "feedback").before("trial-1", number + 1, manifest)
        np.testing.assert_allclose(sent_all + lost, changes, atol=1e-5)
        vector = vector + sent
    assert np.abs(lost).max() > 0


def test_a_round_asked_again_begins_where_it_began(lab: Lab) -> None:
    """A reply that got lost is made again from the same memory, not from its own leftovers."""
    lossy = study(codec={"up": "int2", "error_feedback": "on"})
    manifest = lab.prepare(lossy).manifest
    vector = initial(manifest, 0)
    for number in (1, 2, 2):
        answer, wanted = lab.train(lossy, vector, number)
        assert answer.update is not None
        assert answer.update.after is not None
        answer.update.after(encode_payload("int2", wanted, manifest, "delta")[2])
        if number == 2:
            again = flat(answer.update, manifest)
    np.testing.assert_allclose(again, wanted, atol=1e-6)


def test_without_it_nothing_is_kept(lab: Lab) -> None:
    """A study without error feedback writes no file."""
    answer, _ = lab.train(study(codec={"up": "int8"}), initial(lab.prepare(study()).manifest, 0), 1)
    assert answer.update is not None
    assert answer.update.after is None
    assert not (lab.settings.state / "feedback").exists()


def test_missed_rounds_begin_anew(tmp_path: Path) -> None:
    """The memory of round 3 serves round 4 and round 4 asked again, and no later one."""
    kept = Memory(tmp_path / "feedback")
    kept.keep("trial-1", 3, MANIFEST, LOST)
    for _ in range(2):
        assert kept.before("trial-1", 4, MANIFEST).tolist() == LOST.tolist()
    assert not kept.before("trial-1", 5, MANIFEST).any()
    assert not kept.before("trial-2", 4, MANIFEST).any()


def test_another_layout_or_a_damaged_file_begins_anew(tmp_path: Path) -> None:
    """Numbers for other tensors, or half a file, are never added to an update."""
    kept = Memory(tmp_path)
    kept.keep("trial-1", 1, MANIFEST, LOST)
    other = AdapterManifest(tensors=(TensorSpec(name="b.lora_A.weight", shape=(2, 2)),))
    assert not kept.before("trial-1", 2, other).any()
    file = tmp_path / "trial-1-1.npz"
    file.write_bytes(file.read_bytes()[:50])
    assert not kept.before("trial-1", 2, MANIFEST).any()


def test_only_the_owner_reads_them_and_they_do_not_pile_up(tmp_path: Path) -> None:
    """Mode 0600, two rounds of a study, the last four studies."""
    kept = Memory(tmp_path / "feedback")
    for name in ("a-1", "b-1", "c-1", "d-1", "e-1"):
        for number in (1, 2, 3):
            kept.keep(name, number, MANIFEST, LOST)
    files = sorted((tmp_path / "feedback").iterdir())
    assert [file.name for file in files] == [
        f"{name}-1-{number}.npz" for name in "bcde" for number in (2, 3)
    ]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_a_full_disk_costs_the_memory_and_not_the_reply(tmp_path: Path) -> None:
    """What cannot be written is only a warning."""
    (tmp_path / "feedback").write_text("not a folder")
    kept = Memory(tmp_path / "feedback")
    kept.keep("trial-1", 1, MANIFEST, LOST)
    assert not kept.before("trial-1", 2, MANIFEST).any()


@pytest.mark.parametrize("lora", ["flexlora", "rolora"])
def test_factors_that_change_their_meaning_have_no_memory(lora: str) -> None:
    """A residual of factors that the aggregator rebuilds would be added to something else."""
    with pytest.raises(ValueError, match="has other factors by then"):
        study(codec={"up": "topk-0.1"}, aggregation={"lora": lora})
