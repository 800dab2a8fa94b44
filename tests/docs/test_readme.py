"""The README's examples are real: settings load, commands and files exist."""

import re
import tomllib
from pathlib import Path

from typer.testing import CliRunner

from fedward.cli import app
from fedward.federation import FederationSettings
from protocol.settings import parse
from protocol.study import StudySettings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)


def test_the_example_settings_are_valid() -> None:
    """A user who copies the two TOML blocks gets no error about a key."""
    federation, study = (tomllib.loads(block) for block in BLOCKS)
    assert parse(federation, FederationSettings, source="README").sites
    assert parse(study, StudySettings, source="README").rounds.count == 10


def test_the_make_targets_exist() -> None:
    """Every `make X` that the README names is a target, and CI runs the README's two."""
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci" / "run").read_text()
    for target in set(re.findall(r"make ([a-z]+)", README)) - {"make"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "make demo" in ci
    assert "make test" in ci


def test_the_verbs_exist() -> None:
    """Every verb that the README lists has a help text."""
    verbs = re.search(r"teaches the rest: (.*?)\.", README, re.DOTALL)
    assert verbs is not None
    for verb in re.findall(r"`(\w+)`", verbs.group(1)):
        assert CliRunner().invoke(app, [verb, "--help"]).exit_code == 0, verb


def test_the_linked_pages_and_folders_exist() -> None:
    """No dead link, no folder that is only a promise."""
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target
    for cell in re.findall(r"^\| (`.*?`) \|", README, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", cell):
            assert (ROOT / name).exists(), name
