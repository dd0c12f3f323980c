"""Tables with a column for each field: parquet, and Arrow files."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.errors import FormatError
from mconv.train.data.bad_records import BadRecord, Kind, RecordLocation
from mconv.train.data.reading.batch import BLOCK, Batch, Record
from mconv.train.data.reading.expansion import Expansion

ROWS = 256
"""Rows of a parquet file that are read together."""
FILE, END = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"
"""The beginning of Arrow's file format, and the end of its stream format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows(Batch):
    """Rows of a table, a record each."""

    stream: bytes
    """The rows as an Arrow stream: a slice of a record batch would be pickled with all that it is cut from."""

    @property
    def table(self) -> Any:
        """The rows as an Arrow record batch."""
        ipc = importlib.import_module("pyarrow.ipc")
        return ipc.open_stream(self.stream).read_next_batch()

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


def parquet(path: Path, keys: Sequence[str] | None, expansion: Expansion) -> Iterator[Batch]:
    """Yield the batches of a parquet file."""
    module = importlib.import_module("pyarrow.parquet")
    with _named(path, "parquet file"):
        file = module.ParquetFile(path)
        wanted = columns(path, file.schema_arrow.names, keys)
        expansion.check(_unpacked_size(file.metadata))
        yield from cut(str(path), file.iter_batches(ROWS, columns=wanted), expansion)


def _unpacked_size(metadata: Any) -> int:
    """Return the bytes of all pages, as the file says; repetition within them makes them more."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return sum(group.column(number).total_uncompressed_size for group in groups for number in range(group.num_columns))


def arrow(path: Path, keys: Sequence[str] | None, expansion: Expansion) -> Iterator[Batch]:
    """Yield the batches of an Arrow file: a stream, as `datasets` writes it, or the file format (feather)."""
    module = importlib.import_module("pyarrow")
    with _named(path, "Arrow file"), module.memory_map(str(path)) as file:
        is_file = file.read(len(FILE)) == FILE
        _check_end(path, file, is_file=is_file)
        reader = (module.ipc.open_file if is_file else module.ipc.open_stream)(file)
        wanted = columns(path, reader.schema.names, keys)
        found = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
        yield from cut(str(path), (batch.select(wanted) for batch in found), expansion)


def _check_end(path: Path, file: Any, *, is_file: bool) -> None:
    """Raise FormatError if a stream has no mark of its end: cut between two batches, it would be read as a whole."""
    size = file.size()
    file.seek(max(0, size - len(END)))
    if not is_file and file.read(len(END)) != END:
        raise FormatError(f"{path}: an Arrow stream without the mark of its end: it is cut short, or still being written")
    file.seek(0)


@contextmanager
def _named(path: Path, what: str) -> Iterator[None]:
    """Raise the library's errors as FormatError, with the file's name."""
    try:
        yield
    except FormatError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:
        raise FormatError(f"{path}: not a {what}, or damaged ({error})".replace("not a A", "not an A")) from error


def columns(path: Path | str, names: Sequence[str], keys: Sequence[str] | None) -> list[str]:
    """Return the columns to read. Raises FormatError where a table lacks one."""
    if missing := [key for key in keys or () if key not in names]:
        raise FormatError(f"{path}: no column {missing[0]!r}, only {[*names]}; name it with --key")
    return [*(names if keys is None else keys)]


def cut(name: str, tables: Iterator[Any], expansion: Expansion | None = None) -> Iterator[Rows]:
    """Yield record batches of about a block, cut where long rows make them larger."""
    write, first = _writer(), 1
    for table in tables:
        if expansion:
            expansion.add(table.nbytes)
        rows = max(1, table.num_rows * BLOCK // max(1, table.nbytes))
        for start in range(0, table.num_rows, rows):
            part = table.slice(start, rows)
            yield Rows(file=name, first=first + start, size=part.nbytes, stream=write(part))
        first += table.num_rows


def _writer() -> Callable[[Any], bytes]:
    """Return the function that writes a record batch as a stream, without what else lies in its buffers."""
    module = importlib.import_module("pyarrow")

    def write(table: Any) -> bytes:
        sink = module.BufferOutputStream()
        with module.ipc.new_stream(sink, table.schema.remove_metadata()) as stream:
            stream.write_batch(table.replace_schema_metadata(None))
        return bytes(sink.getvalue().to_pybytes())

    return write
