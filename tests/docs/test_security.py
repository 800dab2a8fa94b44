"""docs/security.md: every promise names a test, and the test is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_exists(file: str, name: str) -> None:
    """The file is there, and the function in it."""
    tree = ast.parse((ROOT / file).read_text())
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert any(one.startswith("test_") for one in found)
    assert not name or name in found


def test_every_promise_names_a_test() -> None:
    """A row of a table of promises without a test would be a mere claim."""
    promises = re.findall(r"\| promise \| test \|\n\|[-| ]+\|\n((?:\|.*\n)+)", PAGE)
    assert len(promises) >= 5
    rows = [row for table in promises for row in table.splitlines()]
    assert [row for row in rows if "`tests/" not in row] == []
