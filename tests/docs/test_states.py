"""The diagrams and the code name the same states."""

import re
from enum import StrEnum
from pathlib import Path

import pytest

from protocol.states import SiteOutcome, StudyState, TrainerState

PAGE = (Path(__file__).parents[2] / "docs" / "states.md").read_text()


def drawn(heading: str) -> set[str]:
    """The states in the diagram under a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return {
        name
        for line in section.splitlines()
        if "-->" in line
        for name in re.findall(r"([a-z_]+)", line.split(":")[0])
    }


@pytest.mark.parametrize(
    ("heading", "states", "extra"),
    [
        ("A study", StudyState, set()),
        ("A site in one round", SiteOutcome, {"asked"}),
        ("A trainer", TrainerState, set()),
    ],
)
def test_every_state_is_drawn(heading: str, states: type[StrEnum], extra: set[str]) -> None:
    """A state that is added to the code or to the page alone fails here."""
    assert drawn(heading) == {str(state) for state in states} | extra
