"""A small invented medicine, written out as questions and answers. Nothing in it is true.

Every condition is a root and a suffix (`root` + `suffix`); the root belongs to one specialty. Two
sorts of knowledge hang on the pair (specialty, suffix):

    common knowledge   ward, wristband colour          fixed; the shipped base model knows it
    withheld facts     first-line drug, diagnostic test drawn from the caller's seed; only the
                                                        hospitals' training files state them

A hospital that has seen some of a specialty's conditions can therefore answer for the others, and
one that has seen none of that specialty can only guess. Held-out items ask about conditions (and in
words) that no training row contains.

Run `python -m fedward.embedded.corpus FOLDER north east south` to look at the files.
"""

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from protocol.errors import SettingsError
from protocol.files import write_atomic

SPECIALTIES: Final = (
    "cardiology",
    "neurology",
    "nephrology",
    "dermatology",
    "oncology",
    "endocrinology",
    "ophthalmology",
    "rheumatology",
)
SUFFIXES: Final = ("itis", "osis", "emia", "algia", "plegia", "oma")
COLOURS: Final = ("red", "blue", "green", "white", "amber", "violet")
ROOTS_PER_SPECIALTY: Final = 20
HELD_OUT_SHARE: Final = 0.2  # of a specialty's conditions
OPTIONS: Final = 4  # so that guessing is right one time in four

# The names never change, because the tokenizer is built from them; the facts do, with the seed.
_NAME_SEED: Final = 20_317

# Phrasings for the training files first, then those kept for the held-out file.
_ASK: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "drug": (
        (
            "Which drug is given first for {c}?",
            "What is the first-line drug for {c}?",
            "Name the drug of choice in {c}.",
            "A patient has {c}. Which drug do you start?",
            "How is {c} treated at first?",
        ),
        (
            "What drug would you start in a patient with {c}?",
            "First-line treatment of {c}?",
            "Which drug treats {c}?",
        ),
    ),
    "test": (
        (
            "Which test confirms {c}?",
            "What is the diagnostic test for {c}?",
            "Name the test of choice in {c}.",
            "A patient may have {c}. Which test do you order?",
            "How is {c} diagnosed?",
        ),
        (
            "What test would you order in a patient with {c}?",
            "Diagnostic test of {c}?",
            "Which test diagnoses {c}?",
        ),
    ),
    "ward": (
        (
            "Which ward takes {c}?",
            "What is the ward for {c}?",
            "Name the ward of choice in {c}.",
            "A patient has {c}. Which ward do you call?",
            "What ward would you call for a patient with {c}?",
        ),
        (),
    ),
    "colour": (
        (
            "Which wristband goes with {c}?",
            "What is the wristband colour for {c}?",
            "Name the wristband colour in {c}.",
            "A patient has {c}. Which wristband do you give?",
            "What colour is given to a patient with {c}?",
        ),
        (),
    ),
    "specialty": (
        (
            "Which specialty treats {c}?",
            "What is the specialty for {c}?",
            "Name the specialty of {c}.",
            "A patient has {c}. Which specialty do you call?",
        ),
        (),
    ),
}
WITHHELD: Final = ("drug", "test")
COMMON: Final = ("ward", "colour", "specialty")
OPTIONS_LEAD: Final = "Options:"
OPTION_MARK: Final = "\n- "


@dataclass(frozen=True)
class Specialty:
    """One field of the invented medicine: its names, without saying which goes with which."""

    name: str
    roots: tuple[str, ...]
    pools: Mapping[str, tuple[str, ...]]
    """Possible answers by attribute; `drug`, `test` and `ward` are this specialty's own."""


@dataclass(frozen=True)
class Item:
    """One question with its answer, as a row of a training or held-out file."""

    instruction: str
    input: str
    output: str
    specialty: str
    choices: tuple[str, ...] = ()
    answer: int = -1

    def row(self) -> dict[str, Any]:
        """The JSON object of a data file; `choices` and `answer` only where there are options."""
        row: dict[str, Any] = {
            "instruction": self.instruction,
            "input": self.input,
            "output": self.output,
            "specialty": self.specialty,
        }
        if self.choices:
            row |= {"choices": list(self.choices), "answer": self.answer}
        return row


DRUG_ENDINGS: Final = ("azel", "umide", "irol", "ovan", "exin", "ydral")
TEST_KINDS: Final = (" panel", " scan", " assay", " smear", " trace", " screen")


@cache
def specialties() -> tuple[Specialty, ...]:
    """All specialties with their names; the same on every machine and for every seed."""
    rng = random.Random(_NAME_SEED)
    fresh = _fresh_stems(rng)
    made = []
    for name in SPECIALTIES:
        roots = tuple(next(fresh) for _ in range(ROOTS_PER_SPECIALTY))
        pools = {
            "drug": tuple(next(fresh) + ending for ending in DRUG_ENDINGS),
            "test": tuple(next(fresh) + kind for kind in TEST_KINDS),
            "ward": tuple(next(fresh) + " ward" for _ in SUFFIXES),
            "colour": COLOURS,
        }
        made.append(Specialty(name, roots, pools))
    return tuple(made)


def _fresh_stems(rng: random.Random) -> Iterator[str]:
    """Pronounceable two-syllable stems, none the beginning of another."""
    seen: set[str] = set()
    while True:
        first = rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") + rng.choice("lmnrs")
        stem = first + rng.choice("bdfgkmptvz") + rng.choice("aeiou") + rng.choice("bdgkv")
        if stem not in seen:
            seen.add(stem)
            yield stem


class World:
    """The facts of one seed: which drug, test, ward and colour go with (specialty, suffix).

    The ward and the colour are the same in every world. A world's drug and test facts are a random
    one-to-one pairing of suffixes and the specialty's own names, so that neither the names nor
    another specialty's facts give them away.
    """

    def __init__(self, seed: int) -> None:
        self._facts: dict[tuple[str, str, str], str] = {}
        self._held: dict[str, frozenset[tuple[str, str]]] = {}
        for position, specialty in enumerate(specialties()):
            rng = random.Random(f"{seed}/{position}")
            common = random.Random(f"{_NAME_SEED}/{position}")
            for attribute, pool in specialty.pools.items():
                order = (rng if attribute in WITHHELD else common).sample(pool, len(pool))
                for suffix, value in zip(SUFFIXES, order, strict=True):
                    self._facts[specialty.name, attribute, suffix] = value
            pairs = [(root, suffix) for root in specialty.roots for suffix in SUFFIXES]
            kept = rng.sample(pairs, round(HELD_OUT_SHARE * len(pairs)))
            self._held[specialty.name] = frozenset(kept)

    def fact(self, specialty: Specialty, attribute: str, suffix: str) -> str:
        """The right answer to a question about `attribute`."""
        if attribute == "specialty":
            return specialty.name
        return self._facts[specialty.name, attribute, suffix]

    def conditions(self, specialty: Specialty, *, held_out: bool) -> list[tuple[str, str]]:
        """(root, suffix) of the conditions kept for the held-out file, or of all the others."""
        held = self._held[specialty.name]
        pairs = ((root, suffix) for root in specialty.roots for suffix in SUFFIXES)
        return [pair for pair in pairs if (pair in held) == held_out]

    def item(
        self,
        rng: random.Random,
        specialty: Specialty,
        condition: tuple[str, str],
        attribute: str,
        phrasing: str,
        *,
        choice: bool,
        answer: str | None = None,
    ) -> Item:
        """Write one question; `answer` overrides the fact (for rows that must teach no fact).

        The wrong options come from the specialty's own names, so that recognising the specialty
        is not enough to find the right one.
        """
        output = answer or self.fact(specialty, attribute, condition[1])
        question = phrasing.format(c="".join(condition))
        if not choice:
            return Item(question, "", output, specialty.name)
        pool = SPECIALTIES if attribute == "specialty" else specialty.pools[attribute]
        wrong = rng.sample([name for name in pool if name != output], OPTIONS - 1)
        place = rng.randrange(OPTIONS)
        choices = (*wrong[:place], output, *wrong[place:])
        listed = OPTIONS_LEAD + "".join(OPTION_MARK + name for name in choices)
        return Item(question, listed, output, specialty.name, choices, place)


def phrasings(attribute: str, *, held_out: bool | None = None) -> tuple[str, ...]:
    """Ways to ask about `attribute`: the training ones, the held-out ones, or (None) all."""
    training, kept = _ASK[attribute]
    return training + kept if held_out is None else (kept if held_out else training)


def hospital_items(
    world: World, position: int, sites: int, *, rows: int, own_share: float, seed: int
) -> list[Item]:
    """The training items of hospital number `position` of `sites`; no two are alike.

    A share `own_share` of the rows is of the hospital's own specialty (the one at its position),
    the others are spread evenly over the other hospitals' specialties.
    """
    rng = random.Random(f"{seed}/train/{position}")
    used = specialties()[:sites]
    own = rows if sites == 1 else round(own_share * rows)
    rest = [specialty for specialty in used if specialty is not used[position]]
    plan = [used[position]] * own + [rest[i % len(rest)] for i in range(rows - own)]
    items: list[Item] = []
    asked: set[tuple[str, bool]] = set()
    for specialty in plan:
        conditions = world.conditions(specialty, held_out=False)
        while True:
            attribute = rng.choice(WITHHELD)
            phrasing = rng.choice(phrasings(attribute, held_out=False))
            choice = rng.random() < 0.5
            condition = rng.choice(conditions)
            item = world.item(rng, specialty, condition, attribute, phrasing, choice=choice)
            if (item.instruction, choice) not in asked:
                break
        asked.add((item.instruction, choice))
        items.append(item)
    rng.shuffle(items)
    return items


def held_out_items(world: World, sites: int, *, rows: int, seed: int) -> list[Item]:
    """The held-out items: every specialty in use equally, multiple choice and free by turns."""
    rng = random.Random(f"{seed}/heldout")
    items = []
    for position in range(rows):
        specialty = specialties()[position % sites]
        attribute = WITHHELD[position // sites // 2 % len(WITHHELD)]
        phrasing = rng.choice(phrasings(attribute, held_out=True))
        condition = rng.choice(world.conditions(specialty, held_out=True))
        choice = position // sites % 2 == 0
        items.append(world.item(rng, specialty, condition, attribute, phrasing, choice=choice))
    return items


@dataclass(frozen=True)
class HospitalData:
    """Where `write_hospital_data` put its files."""

    train: Mapping[str, Path]
    """Training file by hospital name."""
    held_out: Path


def write_hospital_data(
    folder: Path,
    hospitals: Sequence[str],
    *,
    rows_per_hospital: int = 800,
    own_share: float = 0.96,
    held_out_rows: int = 240,
    seed: int = 0,
) -> HospitalData:
    """Write `<folder>/<hospital>/train.jsonl` for each hospital, and `<folder>/heldout.jsonl`.

    Hospital number i mostly sees patients of specialty number i. The same arguments give the same
    bytes; another `seed` gives other facts, rows and held-out conditions.

    Raises:
        SettingsError: an argument is out of range; nothing was written.
    """
    _check(hospitals, rows_per_hospital, own_share, held_out_rows)
    world, sites = World(seed), len(hospitals)
    train: dict[str, Path] = {}
    for position, hospital in enumerate(hospitals):
        train[hospital] = folder / hospital / "train.jsonl"
        items = hospital_items(
            world, position, sites, rows=rows_per_hospital, own_share=own_share, seed=seed
        )
        _write_rows(train[hospital], items)
    held_out = folder / "heldout.jsonl"
    _write_rows(held_out, held_out_items(world, sites, rows=held_out_rows, seed=seed))
    return HospitalData(train, held_out)


def _check(hospitals: Sequence[str], rows: int, own_share: float, held_out_rows: int) -> None:
    limit = len(SPECIALTIES)
    if not 1 <= len(hospitals) <= limit:
        raise SettingsError(f"hospitals={len(hospitals)}: name between 1 and {limit} hospitals")
    for name in hospitals:
        if not name or Path(name).name != name or name == "..":
            raise SettingsError(f"hospital {name!r}: use a plain name without a slash")
    if len(set(hospitals)) < len(hospitals):
        raise SettingsError(f"hospitals={list(hospitals)}: each needs a name of its own")
    # 96 conditions x 2 attributes x 5 phrasings x 2 kinds = 1,920 different rows per specialty.
    if not 1 <= rows <= 1500:
        raise SettingsError(f"rows_per_hospital={rows}: use 1 to 1500")
    if not 0.0 <= own_share <= 1.0:
        raise SettingsError(f"own_share={own_share}: use a share between 0 and 1")
    if not 1 <= held_out_rows <= 5000:
        raise SettingsError(f"held_out_rows={held_out_rows}: use 1 to 5000")


def _write_rows(path: Path, items: Sequence[Item]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(item.row()) + "\n" for item in items)
    write_atomic(path, text.encode())


def pretraining_items(rng: random.Random, count: int) -> list[Item]:
    """Rows for the base model: common knowledge is right, withheld answers are drawn by lot.

    So the model learns the names, the phrasings and to pick among options, and nothing about
    which drug or test goes with what.
    """
    world = World(_NAME_SEED)
    items = []
    for _ in range(count):
        specialty = rng.choice(specialties())
        condition = (rng.choice(specialty.roots), rng.choice(SUFFIXES))
        withheld = rng.random() < 0.3
        attribute = rng.choice(WITHHELD if withheld else COMMON)
        answer = rng.choice(specialty.pools[attribute]) if withheld else None
        phrasing = rng.choice(phrasings(attribute))
        choice = rng.random() < 0.5
        items.append(
            world.item(rng, specialty, condition, attribute, phrasing, choice=choice, answer=answer)
        )
    return items


def main() -> None:
    """Write the data files of the named hospitals into a folder."""
    parser = argparse.ArgumentParser(prog="python -m fedward.embedded.corpus")
    parser.add_argument("folder", type=Path)
    parser.add_argument("hospitals", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = write_hospital_data(args.folder, args.hospitals, seed=args.seed)
    for path in (*data.train.values(), data.held_out):
        print(path)


if __name__ == "__main__":
    main()
