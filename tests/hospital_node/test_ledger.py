"""The ledger: what left is on disk, in order, and an altered line shows."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from hospital_node.ledger import GENESIS, Ledger, LedgerError, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of three lines."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for number in range(3):
        ledger.append({"kind": "reply", "number": number})
    ledger.close()
    return ledger.path


def test_lines_are_chained_and_private(path: Path) -> None:
    """Each line names its predecessor's hash, and only the owner can open the file."""
    entries = list(read(path))
    assert [entry["number"] for entry in entries] == [0, 1, 2]
    assert [entry["previous"] for entry in entries] == [GENESIS, *(e["hash"] for e in entries[:2])]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_reopening_goes_on_with_the_chain(path: Path) -> None:
    """A restarted trainer appends to the same chain."""
    ledger = Ledger(path)
    ledger.append({"kind": "reply", "number": 3})
    ledger.close()
    assert [entry["seq"] for entry in read(path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("line", [0, 1, 2])
def test_an_edited_line_is_found(path: Path, line: int) -> None:
    """A changed number breaks the chain at its line, and the trainer will not start on it."""
    lines = path.read_text().splitlines(keepends=True)
    lines[line] = lines[line].replace(f'"number":{line}', '"number":9')
    path.write_text("".join(lines))
    with pytest.raises(LedgerError, match=f"line {line + 1}: the ledger was altered"):
        Ledger(path)


def test_a_removed_or_moved_line_is_found(path: Path) -> None:
    """Cutting a line out of the middle, or swapping two, breaks the chain."""
    first, second, third = path.read_text().splitlines(keepends=True)
    for altered in (first + third, second + first + third, second + third):
        path.write_text(altered)
        with pytest.raises(LedgerError, match="altered"):
            list(read(path))


def test_a_recomputed_line_is_found_by_its_successor(path: Path) -> None:
    """Giving an edited line a right hash of its own does not help: the next line names the old."""
    import hospital_node.ledger as module

    lines = path.read_text().splitlines()
    entry = json.loads(lines[1])
    del entry["hash"]
    entry["number"] = 9
    lines[1] = json.dumps({**entry, "hash": module._hash(entry)})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(LedgerError, match="line 3"):
        list(read(path))


def test_a_line_torn_by_a_power_cut_is_cut_off_and_said(path: Path) -> None:
    """Half a last line never belonged to anything that left; the next start notes it."""
    with path.open("a") as file:
        file.write('{"seq": 4, "numb')
    Ledger(path).close()
    last = list(read(path))[-1]
    assert (last["kind"], last["torn_bytes"], last["seq"]) == ("recovered", 16, 4)


def test_one_writer(path: Path) -> None:
    """A second trainer on the same ledger is told so."""
    ledger = Ledger(path)
    with pytest.raises(LedgerError, match="another process is writing"):
        Ledger(path)
    ledger.close()


@pytest.mark.parametrize("short", [True, False])
def test_a_full_disk_leaves_the_ledger_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    """A line that does not fit is taken back whole, the error is a sentence, and it goes on."""
    ledger, before, write = Ledger(path), path.read_bytes(), os.write

    def full(file: int, data: bytes) -> int:
        if not short:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:10])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(LedgerError, match="cannot write the ledger"):
        ledger.append({"kind": "reply"})
    assert path.read_bytes() == before
    monkeypatch.undo()
    ledger.append({"kind": "reply"})
    ledger.close()
    assert len(list(read(path))) == 4


def test_unreadable_place_is_a_sentence(tmp_path: Path) -> None:
    """A folder where the ledger should be gives a sentence."""
    (tmp_path / "ledger.jsonl").mkdir()
    with pytest.raises(LedgerError, match="cannot open the ledger"):
        Ledger(tmp_path / "ledger.jsonl")
