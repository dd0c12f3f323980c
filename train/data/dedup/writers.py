"""Files that records are written to as they were read."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mconv.errors import FormatError
from mconv.train.data.reading import lines, tables
from mconv.train.data.reading.batch import Batch
from mconv.train.data.reading.formats import FORMATS
from mconv.train.data.reading.lines import JsonLines
from mconv.train.data.writing.packing import PACKERS

Kept = npt.NDArray[np.bool_]


class Writer(ABC):
    """A file that records of one kind are written to."""

    @abstractmethod
    def __init__(self, part: Path, name: Path, source: Path) -> None:
        """Open `part`, which will have the name `name`, for records like those of `source`."""

    @abstractmethod
    def write(self, batch: Batch, kept: Kept) -> None:
        """Write the records of a batch that are kept."""

    @abstractmethod
    def close(self) -> None:
        """Write the end of the file."""


class LineWriter(Writer):
    """Lines, byte for byte; a last line without an end gets one."""

    def __init__(self, part: Path, name: Path, source: Path) -> None:
        self._stack = ExitStack()
        file = self._stack.enter_context(part.open("wb"))
        self._file = self._stack.enter_context(PACKERS[name.suffix](file)) if name.suffix in PACKERS else file

    def write(self, batch: Batch, kept: Kept) -> None:
        """Write the lines of a batch that are kept."""
        if isinstance(batch, JsonLines):  # not a line that was too long
            self._file.write(b"".join(line + b"\n" for _, line in compress(batch.lines(), kept.tolist())))

    def close(self) -> None:
        """Write the end of a packed file."""
        self._stack.close()


class TableWriter(Writer):
    """Rows of a parquet or an Arrow file, with the columns of the first source."""

    def __init__(self, part: Path, name: Path, source: Path) -> None:
        self._name, self._schema = name, _schema(source)
        self._writer = TABLES[name.suffix](part, self._schema)

    def write(self, batch: Batch, kept: Kept) -> None:
        """Write the rows of a batch that are kept. Raises FormatError if its columns are others."""
        table = batch.table if isinstance(batch, tables.Rows) else None
        if table is None or not table.schema.equals(self._schema):
            raise FormatError(
                f"{batch.file} has other columns than the first source of {self._name}; name a folder as --out"
            )
        self._writer.write_batch(table.filter(importlib.import_module("pyarrow").array(kept)))

    def close(self) -> None:
        """Write the end of the file."""
        self._writer.close()


def _schema(source: Path) -> Any:
    """Return the columns of a parquet or an Arrow file."""
    if source.suffix == ".parquet":
        return importlib.import_module("pyarrow.parquet").read_schema(source)
    module = importlib.import_module("pyarrow")
    with module.memory_map(str(source)) as file:
        is_file = file.read(len(tables.FILE)) == tables.FILE
        file.seek(0)
        return (module.ipc.open_file if is_file else module.ipc.open_stream)(file).schema


def _parquet(part: Path, schema: Any) -> Any:
    return importlib.import_module("pyarrow.parquet").ParquetWriter(part, schema, compression="zstd")


def _stream(part: Path, schema: Any) -> Any:
    return importlib.import_module("pyarrow").ipc.new_stream(str(part), schema)


def _feather(part: Path, schema: Any) -> Any:
    return importlib.import_module("pyarrow").ipc.new_file(str(part), schema)


TABLES: dict[str, Callable[[Path, Any], Any]] = {".parquet": _parquet, ".arrow": _stream, ".feather": _feather}
"""Writers of tables by suffix; `datasets` keeps streams in .arrow files."""


class Kind(NamedTuple):
    """A kind of records that can be written as they were read."""

    name: str
    writer: type[Writer]


_TABLE = Kind("table", TableWriter)
KINDS: dict[Any, Kind] = {
    lines.json_lines: Kind("JSON lines", LineWriter), lines.text_lines: Kind("text", LineWriter), tables.parquet: _TABLE,
    tables.arrow: _TABLE,
}  # fmt: skip
"""Kinds by the function that reads a format."""
SUFFIXES = [suffix for suffix, found in FORMATS.items() if found.batches in KINDS]
"""Ends of names, without packing, of files that can be written."""
