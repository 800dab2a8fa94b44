"""The page of settings is what the code reads."""

from fedward.reference import PAGE, page


def test_the_page_is_in_step() -> None:
    """`python -m fedward.reference` would write what is there."""
    assert PAGE.read_text() == page()


def test_every_key_has_a_sentence() -> None:
    """No row of a table ends with an empty cell."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert not [row for row in rows if row.rstrip("| ").endswith("|") or row.endswith("|  |")]
