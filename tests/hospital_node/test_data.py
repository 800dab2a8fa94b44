"""Reading the hospital's own files: each format, and each way they can be wrong."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hospital_node.trainer.data import Row, load_rows, read_rows, split
from hospital_node.trainer.errors import Refusal
from protocol.site import ColumnSettings, DataSettings
from protocol.states import Reason

SECRET = "Jane Roe"
EXPECTED = [
    Row("which drug", "for rash", "salve"),
    Row("pick one", "", "tonic", ("salve", "tonic"), 1),
]
OWN = ColumnSettings(instruction="q", input="ctx", output="a", choices="opts", answer="right")


def records(columns: ColumnSettings) -> list[dict[str, Any]]:
    """Two rows under the given column names, with a column nobody asked for."""
    c = columns
    return [
        {c.instruction: "which drug", c.input: "for rash", c.output: "salve", c.choices: None,
         c.answer: None, "mrn": SECRET},
        {c.instruction: "pick one", c.input: None, c.output: "tonic",
         c.choices: ["salve", "tonic"], c.answer: 1, "mrn": SECRET},
    ]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]], *, bar: bool = False) -> Path:
    """The rows in the format of the path's suffix; CSV options as JSON, or parted by |."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for row in rows:
                cells = dict(row)
                for key, value in row.items():
                    if isinstance(value, list):
                        cells[key] = "|".join(value) if bar else json.dumps(value)
                writer.writerow(cells)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("columns", [ColumnSettings(), OWN], ids=["default", "mapped"])
def test_each_format_reads_alike(tmp_path: Path, suffix: str, columns: ColumnSettings) -> None:
    """JSONL, CSV and Parquet give the same rows, under our column names or the hospital's."""
    path = write(tmp_path / f"rows.{suffix}", records(columns))
    assert read_rows(path, columns) == EXPECTED


def test_csv_options_may_be_parted_by_bars(tmp_path: Path) -> None:
    """A spreadsheet's user need not write JSON."""
    path = write(tmp_path / "rows.csv", records(OWN), bar=True)
    assert read_rows(path, OWN) == EXPECTED


def test_a_byte_order_mark_and_empty_lines_are_no_rows(tmp_path: Path) -> None:
    """What a Windows editor adds does no harm."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"instruction": "q", "output": "a"}\r\n\r\n')
    assert read_rows(path, ColumnSettings()) == [Row("q", "", "a")]


def test_the_right_option_is_the_output_where_none_is_given(tmp_path: Path) -> None:
    """A multiple-choice row needs no second copy of its answer."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "q", "choices": ["a", "b"], "answer": 1}\n')
    assert read_rows(path, ColumnSettings())[0].output == "b"


GOOD = '{"instruction": "q", "output": "a"}\n'


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("r.jsonl", GOOD + f'{{"instruction": "{SECRET}\n', "line 2: not valid JSON"),
        ("r.jsonl", GOOD * 2 + f'["{SECRET}"]\n', "line 3: a JSON object"),
        ("r.jsonl", f'{{"output": "{SECRET}"}}\n', "line 1: column 'instruction' is missing"),
        ("r.jsonl", f'{{"instruction": "{SECRET}", "output": " "}}', "line 1: column 'output' is"),
        ("r.jsonl", f'{{"instruction": ["{SECRET}"], "output": "a"}}', "must be text"),
        ("r.jsonl", f'{{"instruction": "{SECRET}\\ud800", "output": "a"}}', "surrogate"),
        ("r.jsonl", GOOD[:-2] + f', "choices": "[{SECRET}"}}', "'choices' is not a JSON list"),
        ("r.jsonl", GOOD[:-2] + f', "choices": ["{SECRET}", "b"]}}', "index of the right option"),
        ("r.jsonl", GOOD[:-2] + ', "choices": ["a"], "answer": 0}', "2 to 64 options"),
        ("r.jsonl", GOOD[:-2] + ', "choices": ["a", "b"], "answer": 2}', "0 to 1"),
        ("r.jsonl", GOOD[:-2] + ', "choices": ["a", "b"], "answer": 0.5}', "0 to 1"),
        ("r.jsonl", "[" * 100_000, "line 1: not valid JSON"),
        ("r.csv", f"{SECRET},1961\nx,y\n", "line 1: no column 'instruction'"),
        ("r.csv", f"instruction,output\nq,a\n{SECRET},b,c\n", "line 3: 3 cells"),
        ("r.csv", f'instruction,output\nq,"{SECRET}\n', "not valid CSV"),
        ("r.csv", "output,instruction,output\na,b,c\n", "same name"),
        ("r.csv", f"instruction,output\n{SECRET},\n", "line 2: column 'output' is empty"),
        ("r.parquet", SECRET, "not a readable Parquet file"),
        ("r.xlsx", SECRET, "unknown kind of data file '.xlsx': use .jsonl, .csv or .parquet"),
    ],
)
def test_a_broken_row_is_named_and_not_quoted(
    tmp_path: Path, name: str, content: str, sentence: str
) -> None:
    """The message names file, line and column, and holds nothing of the cell."""
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(Refusal, match=str(tmp_path)) as caught:
        read_rows(path, ColumnSettings())
    message = str(caught.value)
    assert sentence in message
    assert caught.value.reason is Reason.DATA_UNREADABLE
    assert SECRET not in message
    assert "1961" not in message


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_bytes_that_are_no_text_are_a_sentence(tmp_path: Path, suffix: str) -> None:
    """Latin-1 text is refused by line."""
    path = tmp_path / f"r.{suffix}"
    head = b"instruction,output\n" if suffix == "csv" else b""
    path.write_bytes(head + b'{"instruction": "f\xe9vrier", "output": "a"}\n')
    with pytest.raises(Refusal, match=r"line \d: not UTF-8"):
        read_rows(path, ColumnSettings())


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv"])
def test_no_rows_is_its_own_reason(tmp_path: Path, name: str) -> None:
    """An empty data set is refused as empty."""
    (tmp_path / name).write_text("" if name == "r.jsonl" else "instruction,output\n")
    with pytest.raises(Refusal, match="no rows") as caught:
        read_rows(tmp_path / name, ColumnSettings())
    assert caught.value.reason is Reason.DATA_EMPTY


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path with a typo, or a folder, gives a sentence."""
    with pytest.raises(Refusal, match=r"gone\.jsonl: there is no such file"):
        read_rows(tmp_path / "gone.jsonl", ColumnSettings())
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(Refusal, match="is not a file"):
        read_rows(tmp_path / "folder.csv", ColumnSettings())


def test_the_split_is_stable_and_shares_nothing() -> None:
    """Order and copies of rows do not matter: no row, nor a copy of one, is on both sides."""
    rows = [Row(f"q{number % 70}", "", "a") for number in range(100)]
    train, heldout = split(rows, 0.2)
    assert set(train) & set(heldout) == set()
    assert sorted(map(repr, train + heldout)) == sorted(map(repr, rows))
    assert 20 <= len(heldout) <= 22
    again_train, again_heldout = split(rows[::-1], 0.2)
    assert (set(again_train), set(again_heldout)) == (set(train), set(heldout))


def test_a_split_needs_two_different_rows() -> None:
    """One row, or copies of one, cannot be set aside."""
    for rows in ([Row("q", "", "a")], [Row("q", "", "a")] * 5):
        with pytest.raises(Refusal, match="too few"):
            split(rows, 0.5)
    train, heldout = split([Row("q", "", "a"), Row("r", "", "a")], 0.9)
    assert (len(train), len(heldout)) == (1, 1)


def test_several_files_are_one_data_set(tmp_path: Path) -> None:
    """Files of different formats add up, and the digest changes with any row."""
    paths = [
        write(tmp_path / f"r{number}.{suffix}", records(OWN))
        for number, suffix in enumerate(["jsonl", "csv", "parquet"])
    ]
    rows = load_rows(DataSettings(train=tuple(paths[:2]), heldout=(paths[2],), columns=OWN))
    assert (rows.train, rows.heldout) == (tuple(EXPECTED * 2), tuple(EXPECTED))
    fewer = load_rows(DataSettings(train=(paths[0],), heldout=(paths[2],), columns=OWN))
    assert fewer.digest != rows.digest
