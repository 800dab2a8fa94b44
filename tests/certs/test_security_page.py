"""docs/security.md promises nothing that no test holds."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_promise_names_a_test_that_exists() -> None:
    """Every test that the page names is in the file that it names."""
    page = (ROOT / "docs" / "security.md").read_text()
    named = re.findall(r"`(tests/[\w/.]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 10
    for file, test in named:
        source = (ROOT / file).read_text()
        assert not test or f"def {test}(" in source, f"{file}::{test}"
