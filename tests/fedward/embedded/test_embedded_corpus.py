"""The invented medicine: what the hospitals see, what is held out, what the base model is told."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fedward.embedded import corpus
from protocol.errors import SettingsError

HOSPITALS = ("north", "east", "south")
SUFFIXES = corpus.SUFFIXES
NAMES = {root + suffix for s in corpus.specialties() for root in s.roots for suffix in SUFFIXES}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def condition_of(instruction: str) -> str:
    """The one word of a question that is a condition's name."""
    words = [word.strip("?.,") for word in instruction.split()]
    (name,) = [word for word in words if word in NAMES]
    return name


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """The same arguments write the same bytes, and another seed writes others."""
    first = corpus.write_hospital_data(tmp_path / "a", HOSPITALS, seed=3)
    again = corpus.write_hospital_data(tmp_path / "b", HOSPITALS, seed=3)
    other = corpus.write_hospital_data(tmp_path / "c", HOSPITALS, seed=4)
    for name in HOSPITALS:
        assert first.train[name].read_bytes() == again.train[name].read_bytes()
        assert first.train[name].read_bytes() != other.train[name].read_bytes()
    assert first.held_out.read_bytes() == again.held_out.read_bytes()


def test_layout_and_counts(tmp_path: Path) -> None:
    """Each hospital gets its own file with the rows asked for; the held-out file lies beside."""
    data = corpus.write_hospital_data(
        tmp_path, HOSPITALS, rows_per_hospital=50, held_out_rows=60, seed=0
    )
    assert {name: path.relative_to(tmp_path) for name, path in data.train.items()} == {
        name: Path(name) / "train.jsonl" for name in HOSPITALS
    }
    assert [len(read(path)) for path in data.train.values()] == [50, 50, 50]
    assert data.held_out == tmp_path / "heldout.jsonl"
    assert len(read(data.held_out)) == 60


def test_rows_are_well_formed(tmp_path: Path) -> None:
    """A choice row lists its four options and its output is the right one; a free row has none."""
    data = corpus.write_hospital_data(tmp_path, HOSPITALS, seed=0)
    kinds = Counter()
    for row in [row for path in (*data.train.values(), data.held_out) for row in read(path)]:
        kinds["choices" in row] += 1
        if "choices" in row:
            assert row["output"] == row["choices"][row["answer"]]
            assert len(set(row["choices"])) == 4
            assert row["input"] == "Options:\n- " + "\n- ".join(row["choices"])
        else:
            assert row["input"] == ""
            assert "answer" not in row
    assert 0.4 < kinds[True] / kinds.total() < 0.6


def test_held_out_is_new(tmp_path: Path) -> None:
    """No held-out condition and no held-out question occurs in any hospital's training file."""
    data = corpus.write_hospital_data(tmp_path, HOSPITALS, seed=0)
    training = [row["instruction"] for path in data.train.values() for row in read(path)]
    held_out = [row["instruction"] for row in read(data.held_out)]
    assert not set(map(condition_of, training)) & set(map(condition_of, held_out))
    blank = {text.replace(condition_of(text), "{c}") for text in training}
    assert not blank & {text.replace(condition_of(text), "{c}") for text in held_out}


def test_held_out_is_balanced(tmp_path: Path) -> None:
    """Every specialty, kind and attribute has the same number of held-out rows."""
    data = corpus.write_hospital_data(tmp_path, HOSPITALS, held_out_rows=240, seed=0)
    groups = Counter(
        (row["specialty"], "choices" in row, row["output"].endswith(corpus.DRUG_ENDINGS))
        for row in read(data.held_out)
    )
    assert sorted(groups.values()) == [20] * 12


def test_hospitals_differ(tmp_path: Path) -> None:
    """A hospital's file has its own specialty in the share asked for, and never a row twice."""
    data = corpus.write_hospital_data(
        tmp_path, HOSPITALS, rows_per_hospital=200, own_share=0.9, seed=0
    )
    for position, path in enumerate(data.train.values()):
        rows = read(path)
        shares = Counter(row["specialty"] for row in rows)
        assert shares[corpus.SPECIALTIES[position]] == 180
        assert sorted(shares.values()) == [10, 10, 180]
        assert len({(row["instruction"], bool(row["input"])) for row in rows}) == 200


def test_one_rule_for_each_pair() -> None:
    """Within a seed (specialty, suffix) decides the answer, and the six answers all differ."""
    world = corpus.World(1)
    for specialty in corpus.specialties():
        for attribute in corpus.WITHHELD:
            answers = [world.fact(specialty, attribute, suffix) for suffix in SUFFIXES]
            assert sorted(answers) == sorted(specialty.pools[attribute])


def test_facts_follow_the_seed() -> None:
    """Two seeds agree on a withheld fact about one time in six, and always on common knowledge."""
    worlds = [corpus.World(seed) for seed in range(40)]
    agree = Counter()
    for attribute in ("drug", "ward"):
        for specialty in corpus.specialties():
            facts = [world.fact(specialty, attribute, "itis") for world in worlds]
            agree[attribute] += sum(fact == facts[0] for fact in facts[1:])
    assert agree["ward"] == 39 * 8
    assert agree["drug"] / (39 * 8) == pytest.approx(1 / 6, abs=0.08)


def test_pretraining_tells_no_fact() -> None:
    """In the base model's rows each drug and test is as likely as another, whatever the suffix."""
    counts: dict[tuple[str, str, str], Counter[str]] = {}
    for item in corpus.pretraining_items(random.Random(0), 40_000):
        attribute = "drug" if item.output.endswith(corpus.DRUG_ENDINGS) else "test"
        if attribute == "test" and not item.output.endswith(corpus.TEST_KINDS):
            continue
        (suffix,) = [s for s in SUFFIXES if condition_of(item.instruction).endswith(s)]
        counts.setdefault((item.specialty, attribute, suffix), Counter())[item.output] += 1
    assert len(counts) == 8 * 2 * 6
    for answers in counts.values():
        # About 125 rows a group, so a fair share is 21 with a standard deviation of 4.2.
        assert len(answers) == 6
        assert max(answers.values()) < 0.4 * answers.total()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"hospitals": ()}, "hospitals=0"),
        ({"hospitals": tuple("abcdefghi")}, "hospitals=9"),
        ({"hospitals": ("a", "a")}, "a name of its own"),
        ({"hospitals": ("../a",)}, "'../a'"),
        ({"hospitals": ("..",)}, "'..'"),
        ({"hospitals": ("",)}, "''"),
        ({"rows_per_hospital": 0}, "rows_per_hospital=0"),
        ({"rows_per_hospital": 5000}, "rows_per_hospital=5000"),
        ({"own_share": 1.5}, "own_share=1.5"),
        ({"own_share": float("nan")}, "own_share=nan"),
        ({"held_out_rows": 0}, "held_out_rows=0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], said: str, tmp_path: Path) -> None:
    """An argument out of range is named with its value, and nothing is written."""
    with pytest.raises(SettingsError, match=said):
        corpus.write_hospital_data(tmp_path, **({"hospitals": HOSPITALS} | arguments))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sites", [1, 2, 8])
def test_any_number_of_hospitals(sites: int, tmp_path: Path) -> None:
    """One hospital or eight get data, and the most rows allowed can be drawn without repeats."""
    names = [f"h{number}" for number in range(sites)]
    data = corpus.write_hospital_data(tmp_path, names, rows_per_hospital=1500, own_share=1.0)
    assert all(len(read(path)) == 1500 for path in data.train.values())
    assert len({row["specialty"] for row in read(data.held_out)}) == sites
