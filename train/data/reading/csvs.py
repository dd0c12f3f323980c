"""Tables of cells between commas or tabs, the names of the columns in the first row."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.errors import FormatError
from mconv.train.data.bad_records import BadRecord, Kind, RecordLocation
from mconv.train.data.reading.batch import BLOCK, Batch, Record
from mconv.train.data.reading.expansion import Expansion
from mconv.train.data.reading.lines import LONGEST
from mconv.train.data.reading.packed import unpacked
from mconv.train.data.reading.tables import columns

Row = tuple[str, ...] | BadRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells(Batch):
    """Rows of cells, a record each."""

    names: tuple[str, ...]
    rows: list[tuple[int, Row]]
    """The line at which each row begins, and its cells; bytes that are not UTF-8 are halves of surrogate pairs."""

    def records(self) -> Iterator[Record]:
        """Yield the fields of each row."""
        for line, row in self.rows:
            place = RecordLocation(self.file, line)
            yield Record(place, row if isinstance(row, BadRecord) else self._fields(row))

    def _fields(self, row: tuple[str, ...]) -> dict[str, str] | BadRecord:
        try:
            "".join(row).encode()
        except UnicodeEncodeError:
            return BadRecord(Kind.NOT_UTF8, "the text is not UTF-8; convert the file first")
        return dict(zip(self.names, row, strict=True))


def commas(path: Path, keys: Sequence[str] | None, expansion: Expansion) -> Iterator[Batch]:
    """Yield the batches of a .csv file."""
    return _batches(path, keys, expansion, "excel")


def tabs(path: Path, keys: Sequence[str] | None, expansion: Expansion) -> Iterator[Batch]:
    """Yield the batches of a .tsv file."""
    return _batches(path, keys, expansion, "excel-tab")


def _batches(path: Path, keys: Sequence[str] | None, expansion: Expansion, dialect: str) -> Iterator[Batch]:
    """Yield batches of rows, each with the line at which it begins."""
    csv.field_size_limit(LONGEST)
    with unpacked(path, expansion) as file:
        lines = _Lines(path, file)
        reader = csv.reader(lines, dialect, strict=True)
        names = _header(path, reader)
        wanted = columns(path, names, keys)
        chosen = [names.index(name) for name in wanted]
        rows: list[tuple[int, Row]] = []
        while (row := _row(reader, lines, names, chosen)) is not None:
            rows.append(row)
            if lines.size >= BLOCK:
                yield Cells(file=str(path), first=rows[0][0], size=lines.taken(), names=tuple(wanted), rows=rows)
                rows = []
        if rows:
            yield Cells(file=str(path), first=rows[0][0], size=lines.taken(), names=tuple(wanted), rows=rows)


def _header(path: Path, reader: Any) -> list[str]:
    """Return the names of the columns. Raises FormatError if they are none."""
    try:
        names: list[str] = next(reader, [])
    except csv.Error as error:
        raise FormatError(f"{path}:1: not CSV: {error}") from error
    if not names or len(set(names)) != len(names):
        raise FormatError(f"{path}:1: the first row must name the columns, each once; it is {names}")
    return names


def _row(reader: Any, lines: "_Lines", names: list[str], chosen: list[int]) -> tuple[int, Row] | None:
    """Return the next row that is not empty, with its line; None at the end of the file."""
    while True:
        begins = lines.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return None
        except csv.Error as error:
            return begins, BadRecord(Kind.NOT_CSV, f"not CSV: {error}")
        if len(cells) == len(names):
            return begins, tuple(cells[number] for number in chosen)
        if cells:
            return begins, BadRecord(Kind.NOT_CSV, f"the row has {len(cells)} cells, the first row {len(names)}")


class _Lines:
    """The lines of a file as text; counts them, and their bytes."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        self.number = self.size = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._file.readline(LONGEST)
        if not line:
            raise StopIteration
        self.number += 1
        self.size += len(line)
        if len(line) == LONGEST:
            raise FormatError(f"{self._path}:{self.number}: the line is longer than {LONGEST >> 20} MiB")
        text = str(line, "utf-8", "surrogateescape")
        return text.removeprefix("\ufeff") if self.number == 1 else text

    def taken(self) -> int:
        """Return the bytes since the last call."""
        size, self.size = self.size, 0
        return size
