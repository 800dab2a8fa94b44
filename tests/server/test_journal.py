"""The journal: no hole and no double, whoever dies at which byte."""

import threading
from pathlib import Path

import pytest

from protocol.events import RoundStarted, StudyEnded, StudyInterrupted
from protocol.states import StudyState
from server.journal import Journal, JournalError, StudyOverError, read_journal


def write(journal: Journal, number: int = 1) -> int:
    """Append one event; its number."""
    return journal.append(RoundStarted, round=number, sites=(), deadline_at=0.0).seq


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    """A new process continues the numbering; reading from a position gives the rest."""
    assert [write(Journal(tmp_path, "s-1")) for _ in range(3)] == [1, 2, 3]
    assert [event.seq for event in Journal(tmp_path, "s-1").read(after=1)] == [2, 3]


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_torn_last_line_is_cut_off(tmp_path: Path, kept: int) -> None:
    """Half an event, left by a kill, is not an event: its number is given again."""
    journal = Journal(tmp_path, "s-1")
    write(journal)
    whole = journal.path.read_bytes()
    write(journal)
    torn = journal.path.read_bytes()[len(whole) :][:kept]
    journal.path.write_bytes(whole + torn)
    assert [event.seq for event in read_journal(journal.path)] == [1]
    assert write(Journal(tmp_path, "s-1")) == 2
    assert [event.seq for event in read_journal(journal.path)] == [1, 2]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    """ServerApp and supervisor append at the same time; every number is there once."""

    def many() -> None:
        journal = Journal(tmp_path, "s-1")
        for _ in range(50):
            write(journal)

    threads = [threading.Thread(target=many) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seqs = [event.seq for event in read_journal(tmp_path / "events.jsonl")]
    assert seqs == list(range(1, 151))


def test_nothing_follows_the_end(tmp_path: Path) -> None:
    """After StudyEnded the journal is closed, for every writer."""
    journal, other = Journal(tmp_path, "s-1"), Journal(tmp_path, "s-1")
    write(other)
    journal.append(StudyEnded, state=StudyState.FINISHED, rounds=1, verdict="done")
    for writer in (journal, other, Journal(tmp_path, "s-1")):
        with pytest.raises(StudyOverError):
            writer.append(StudyInterrupted, last_round=0, cause="x")


def test_damage_inside_is_an_error(tmp_path: Path) -> None:
    """A journal that was edited is refused, not mended."""
    journal = Journal(tmp_path, "s-1")
    write(journal)
    write(journal)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(lines[1])
    with pytest.raises(JournalError, match="follows"):
        write(Journal(tmp_path, "s-1"))
    journal.path.write_bytes(b"not json\n")
    with pytest.raises(JournalError, match="not an event"):
        write(Journal(tmp_path, "s-1"))
