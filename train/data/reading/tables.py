"""Tables with a column for each field: parquet."""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.errors import FormatError
from mconv.train.data.bad_records import BadRecord, Kind, RecordLocation
from mconv.train.data.reading.batch import BLOCK, Batch, Record

ROWS = 256
"""Rows of a parquet file that are read together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows(Batch):
    """Rows of a table, a record each."""

    table: Any
    """An Arrow record batch."""

    def records(self) -> Iterator[Record]:
        """Yield the fields of each row."""
        for number, row in enumerate(_fields(self.table), self.first):
            yield Record(RecordLocation(self.file, number), row)


def _fields(table: Any) -> Iterator[dict[str, Any] | BadRecord]:
    """Yield the fields of each row of a record batch."""
    try:
        rows = table.to_pylist()
    except UnicodeDecodeError:
        rows = [_row(table.slice(number, 1)) for number in range(table.num_rows)]
    yield from rows


def _row(table: Any) -> dict[str, Any] | BadRecord:
    """Return the fields of a record batch of one row, or what is wrong with them."""
    try:
        fields: dict[str, Any] = table.to_pylist()[0]
    except UnicodeDecodeError as error:
        return BadRecord(Kind.NOT_UTF8, f"the text is not UTF-8 (byte {error.start}: {error.reason})")
    return fields


def parquet(path: Path, keys: Sequence[str] | None) -> Iterator[Batch]:
    """Yield the batches of a parquet file."""
    module = importlib.import_module("pyarrow.parquet")
    try:
        file = module.ParquetFile(path)
        columns = file.schema_arrow.names
        if missing := [key for key in keys or () if key not in columns]:
            raise FormatError(f"{path}: no column {missing[0]!r}, only {columns}; name it with --key")
        yield from _cut(str(path), file.iter_batches(ROWS, columns=None if keys is None else [*keys]))
    except FormatError:
        raise
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: not a parquet file, or damaged ({error})") from error


def _cut(name: str, tables: Iterator[Any]) -> Iterator[Rows]:
    """Yield record batches of about a block, cut where long rows make them larger."""
    first = 1
    for table in tables:
        rows = max(1, table.num_rows * BLOCK // max(1, table.nbytes))
        for start in range(0, table.num_rows, rows):
            part = table.slice(start, rows)
            yield Rows(file=name, first=first + start, size=part.nbytes, table=part)
        first += table.num_rows
