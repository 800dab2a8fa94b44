"""The hospital's own rows: JSON Lines, CSV or Parquet, with the columns the site names.

An error names the file, the line (JSONL, CSV) or row (Parquet, from 1) and the column, and quotes
no cell and no header: the first line of a CSV without a header is a patient.
"""

import csv
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from protocol.site import ColumnSettings, DataSettings
from protocol.states import Reason

from .errors import Refusal

MAX_CHOICES: Final = 64
_OPTION_MARK: Final = "|"


@dataclass(frozen=True, slots=True)
class Row:
    """One example. `choices` is empty, and `answer` -1, where there is nothing to choose from.

    `rejected` is an answer that `output` is preferred to; empty for a row that has none.
    """

    instruction: str
    input: str
    output: str
    choices: tuple[str, ...] = ()
    answer: int = -1
    rejected: str = ""


@dataclass(frozen=True)
class Rows:
    """What a site trains and is evaluated on; no row (or copy of a row) is in both."""

    train: tuple[Row, ...]
    heldout: tuple[Row, ...]
    digest: str  # SHA-256 (hex) over all rows; keyed before anything of it leaves


def load_rows(settings: DataSettings) -> Rows:
    """Read every file; without held-out files, a share of the training rows is set aside.

    Raises:
        Refusal: a file is missing or unreadable, a row is broken, or there are no rows.
    """
    train = [row for path in settings.train for row in read_rows(path, settings.columns)]
    if settings.heldout:
        heldout = [row for path in settings.heldout for row in read_rows(path, settings.columns)]
    else:
        train, heldout = split(train, settings.heldout_fraction)
    return Rows(tuple(train), tuple(heldout), _digest(train, heldout))


def read_rows(path: Path, columns: ColumnSettings) -> list[Row]:
    """Read one file by its suffix: .jsonl (or .ndjson), .csv, .parquet.

    Raises:
        Refusal: as `load_rows`.
    """
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise _unreadable(
            f"{path}: unknown kind of data file {path.suffix!r}: use .jsonl, .csv or .parquet"
        )
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "there is no such file"
            raise _unreadable(f"{path}: {what}; data.train and data.heldout name data files")
        rows = [_row(record, place, columns) for place, record in reader(path, columns)]
    except OSError as error:
        raise _unreadable(f"{path}: cannot read: {error.strerror or error}") from error
    if not rows:
        raise Refusal(Reason.DATA_EMPTY, f"{path}: no rows; a data file needs at least one")
    return rows


def split(rows: Sequence[Row], fraction: float) -> tuple[list[Row], list[Row]]:
    """Set `fraction` of the rows aside: (train, heldout).

    A row goes by the hash of its content, so the split is the same in every study and whatever the
    order of the file, and equal rows stay on one side.

    Raises:
        Refusal: there are too few different rows for both sides.
    """
    groups: dict[bytes, list[Row]] = {}
    for row in rows:
        groups.setdefault(hashlib.sha256(_canonical(row)).digest(), []).append(row)
    wanted = max(1, round(fraction * len(rows)))
    order = sorted(groups)
    heldout: set[bytes] = set()
    count = 0
    for key in order[:-1]:  # one group always stays to train on
        if count >= wanted:
            break
        heldout.add(key)
        count += len(groups[key])
    if not heldout:
        raise Refusal(
            Reason.DATA_EMPTY,
            f"{len(rows)} training row(s), {len(groups)} different: too few to set any aside; "
            "give data.heldout files or more rows",
        )
    chosen = [hashlib.sha256(_canonical(row)).digest() in heldout for row in rows]
    return (
        [row for row, held in zip(rows, chosen, strict=True) if not held],
        [row for row, held in zip(rows, chosen, strict=True) if held],
    )


def _jsonl(path: Path, _: ColumnSettings) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError:
                raise _unreadable(f"{place}: not UTF-8 text") from None
            except json.JSONDecodeError as error:
                raise _unreadable(
                    f"{place}: not valid JSON: {error.msg} at character {error.pos + 1}"
                ) from None
            except (ValueError, RecursionError):
                raise _unreadable(f"{place}: not valid JSON") from None
            if not isinstance(record, dict):
                raise _unreadable(f"{place}: a JSON object is needed on every line")
            yield place, record


def _csv(path: Path, columns: ColumnSettings) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a discharge letter exceeds the default
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                return
            _check_header(header, f"{path}, line 1", columns)
            for cells in reader:
                place = f"{path}, line {reader.line_num}"
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise _unreadable(
                        f"{place}: {len(cells)} cells where the header has {len(header)}; a text "
                        'with a comma or line break needs "quotes"'
                    )
                yield place, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise _unreadable(f"{path}, line {reader.line_num}: not valid CSV: {error}") from None
        except UnicodeDecodeError:
            raise _unreadable(f"{path}, after line {reader.line_num}: not UTF-8 text") from None


def _parquet(path: Path, columns: ColumnSettings) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        _check_header(file.schema_arrow.names, str(path), columns)
        wanted = [name for name in _names(columns) if name in file.schema_arrow.names]
        number = 0
        for batch in file.iter_batches(columns=wanted):
            for record in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", record
    except pa.ArrowException as error:
        raise _unreadable(f"{path}: not a readable Parquet file ({type(error).__name__})") from None


def _names(columns: ColumnSettings) -> tuple[str, ...]:
    return tuple(dict.fromkeys(columns.model_dump().values()))


def _check_header(header: Sequence[str], place: str, columns: ColumnSettings) -> None:
    for key in ("instruction", "output"):
        name = getattr(columns, key)
        if name not in header and not (key == "output" and columns.chosen in header):
            raise _unreadable(
                f"{place}: no column {name!r}; set data.columns.{key} to the name this file uses"
            )
    if len(set(header)) != len(header):
        raise _unreadable(f"{place}: two columns have the same name")


def _row(record: dict[str, Any], place: str, columns: ColumnSettings) -> Row:
    """One checked row; `place` is its file and line."""
    choices = _choices(record.get(columns.choices), place, columns.choices)
    answer = _answer(record.get(columns.answer), place, columns.answer, len(choices))
    output = _text(record.get(columns.output), place, columns.output)
    chosen = _text(record.get(columns.chosen), place, columns.chosen)
    rejected = _rejected(record, place, columns, chosen, output) if chosen else ""
    output = output or chosen
    if not output and choices:
        output = choices[answer]
    instruction = _text(record.get(columns.instruction), place, columns.instruction)
    for key, value in (("instruction", instruction), ("output", output)):
        if not value:
            name = getattr(columns, key)
            missing = "empty" if name in record else "missing"
            raise _unreadable(
                f"{place}: column {name!r} is {missing} (data.columns.{key} says which it is)"
            )
    context = _text(record.get(columns.input), place, columns.input)
    return Row(instruction, context, output, choices, answer, rejected)


def _rejected(
    record: dict[str, Any], place: str, columns: ColumnSettings, chosen: str, output: str
) -> str:
    """What a row's chosen answer is preferred to."""
    rejected = _text(record.get(columns.rejected), place, columns.rejected)
    if not rejected:
        raise _unreadable(
            f"{place}: column {columns.chosen!r} needs {columns.rejected!r} beside it "
            "(data.columns.chosen and data.columns.rejected say which they are)"
        )
    if rejected == chosen:
        raise _unreadable(
            f"{place}: columns {columns.chosen!r} and {columns.rejected!r} are the same, which "
            "prefers nothing"
        )
    if output and output != chosen:
        raise _unreadable(
            f"{place}: columns {columns.output!r} and {columns.chosen!r} are two different answers "
            "to learn; leave one empty"
        )
    return rejected


def _text(value: Any, place: str, column: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _unreadable(f"{place}: column {column!r} must be text")
    text = str(value).strip()
    # JSON can spell half of a surrogate pair, which no tokenizer can encode.
    if any("\ud800" <= mark <= "\udfff" for mark in text):
        raise _unreadable(f"{place}: column {column!r} has half of a surrogate pair")
    return text


def _choices(value: Any, place: str, column: str) -> tuple[str, ...]:
    """Options as a list, or in CSV as a JSON list or texts parted by `|`."""
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        try:
            listed = value.lstrip().startswith("[")
            value = json.loads(value) if listed else value.split(_OPTION_MARK)
        except (ValueError, RecursionError):
            raise _unreadable(f"{place}: column {column!r} is not a JSON list") from None
    if not isinstance(value, list | tuple):
        raise _unreadable(f"{place}: column {column!r} must be a list of texts")
    options = tuple(_text(option, place, column) for option in value)
    if options and (not 2 <= len(options) <= MAX_CHOICES or not all(options)):
        raise _unreadable(
            f"{place}: column {column!r} must have 2 to {MAX_CHOICES} options, none empty"
        )
    return options


def _answer(value: Any, place: str, column: str, count: int) -> int:
    if not count:
        return -1
    try:
        index = int(value) if not isinstance(value, bool | float) or value == int(value) else -1
    except (TypeError, ValueError, OverflowError):
        index = -1
    if not 0 <= index < count:
        raise _unreadable(
            f"{place}: column {column!r} must be the index of the right option, 0 to {count - 1}"
        )
    return index


def _unreadable(message: str) -> Refusal:
    return Refusal(Reason.DATA_UNREADABLE, message)


def _canonical(row: Row) -> bytes:
    fields = [row.instruction, row.input, row.output, list(row.choices), row.answer]
    if row.rejected:
        fields.append(row.rejected)
    return json.dumps(fields, separators=(",", ":")).encode()


def _digest(*parts: Iterable[Row]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        for row in part:
            whole.update(_canonical(row) + b"\n")
        whole.update(b"\n")
    return whole.hexdigest()
