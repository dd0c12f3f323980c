"""The formats that records are written in, by the name of the file."""

import importlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from mconv import extras
from mconv.errors import ConfigError, FormatError
from mconv.train.data.bad_records import BadRecord, Kind
from mconv.train.data.reading.fields import in_words, texts_of
from mconv.train.data.reading.packed import without_packing
from mconv.train.data.writing.packing import PACKERS

GROUP = 1 << 24
"""Bytes of the input that are a group of rows in a table."""
LINE_BREAKS = ("stop", "space", "keep")
"""Values of --line-breaks."""
MANY_LINES = (
    "the text has line breaks, but a .txt file holds one text a line; --line-breaks space makes them spaces, "
    "--line-breaks keep lets them divide the text"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Options on how records are written."""

    key: str = "text"
    """Field that is a line of a text file."""
    line_breaks: str = LINE_BREAKS[0]
    """What is done with line breaks in a text of which a file holds one a line."""


LAYOUT = Layout()


class Target(ABC):
    """A file or folder that records are written to."""

    def __init__(self, part: Path, name: Path, layout: Layout) -> None:
        """Open `part`, which will have the name `name`."""
        self.part, self.name, self.layout = part, name, layout

    @abstractmethod
    def prepared(self, record: dict[str, Any]) -> Any:
        """Return what is written of a record, None for nothing. Raises BadRecord if that cannot be."""

    @abstractmethod
    def write(self, rows: Sequence[Any], size: int) -> None:
        """Write prepared records, which were `size` bytes in the input."""

    @abstractmethod
    def close(self) -> None:
        """Write the end of the file."""

    @abstractmethod
    def drop(self) -> None:
        """Close a file that will not be kept."""

    def __enter__(self) -> "Target":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.drop()


class LineTarget(Target):
    """A file of lines, packed by its suffix."""

    def __init__(self, part: Path, name: Path, layout: Layout) -> None:
        super().__init__(part, name, layout)
        self._stack = ExitStack()
        file = self._stack.enter_context(part.open("wb"))
        self._file = self._stack.enter_context(PACKERS[name.suffix](file)) if name.suffix in PACKERS else file

    def write(self, rows: Sequence[Any], size: int) -> None:
        """Write lines."""
        self._file.write(b"".join(rows))

    def close(self) -> None:
        """Write the end of a packed file."""
        self._stack.close()

    drop = close


class JsonTarget(LineTarget):
    """A JSON object a line."""

    def prepared(self, record: dict[str, Any]) -> bytes:
        """Return a line of JSON, as Python's json writes it without escapes."""
        try:
            return json.dumps(record, ensure_ascii=False, default=_json).encode() + b"\n"
        except UnicodeEncodeError as error:
            raise BadRecord(Kind.NOT_UNICODE, f"the text is not Unicode ({error.reason}); mend that record") from None


def _json(value: Any) -> str:
    """Return a value that JSON has no type for. Raises BadRecord where that would lose something."""
    if isinstance(value, date | time | Decimal):
        return str(value)
    raise BadRecord(Kind.WRONG_TYPE, f"JSON has no type for {in_words(value)}; choose fields with --key")


class TextTarget(LineTarget):
    """A text a line, without the white space around it; empty ones are left out."""

    def prepared(self, record: dict[str, Any]) -> bytes | None:
        """Return the text of a record as a line."""
        found = texts_of(record, [self.layout.key])
        if isinstance(found, BadRecord):
            raise found
        text = found[0].strip()
        if self.layout.line_breaks != "keep" and ("\n" in text or "\r" in text):
            if self.layout.line_breaks == "stop":
                raise BadRecord(Kind.LINE_BREAK, MANY_LINES)
            text = re.sub(r"\s*[\r\n]\s*", " ", text)
        return text.encode() + b"\n" if text else None


class TableTarget(Target):
    """A table with the columns of the first records."""

    @staticmethod
    @abstractmethod
    def open(arrow: Any, path: Path, schema: Any) -> Any:
        """Return a writer of a file, made by pyarrow."""

    def __init__(self, part: Path, name: Path, layout: Layout) -> None:
        super().__init__(part, name, layout)
        extras.need("data", "pyarrow", to=f"writing {name}")
        self._arrow = importlib.import_module("pyarrow")
        self._writer: Any = None
        self._rows: list[dict[str, Any]] = []
        self._size = 0

    def prepared(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return the record itself."""
        return record

    def write(self, rows: Sequence[Any], size: int) -> None:
        """Write rows, a group of them together."""
        self._rows += rows
        self._size += size
        if self._size >= GROUP:
            self._flush()

    def close(self) -> None:
        """Write the last rows and the end of the file."""
        if self._rows or not self._writer:
            self._flush()
        self._writer.close()

    def drop(self) -> None:
        """Close the file as it is."""
        if self._writer:
            self._writer.close()

    def _flush(self) -> None:
        """Write the rows that are waiting. Raises FormatError where they do not fit to those before them."""
        arrow = self._arrow
        try:
            if not self._writer:
                self._schema = self._first_schema()
                self._writer = type(self).open(arrow, self.part, self._schema)
            self._check_names()
            self._writer.write_table(arrow.Table.from_pylist(self._rows, schema=self._schema))
        except (arrow.ArrowException, UnicodeEncodeError) as error:
            raise FormatError(
                f"{self.name}: not all records fit into one table ({error}); choose fields with --key"
            ) from error
        self._rows, self._size = [], 0

    def _first_schema(self) -> Any:
        """Return the columns of the first rows; one without a value is taken for text."""
        found, text = self._arrow.Table.from_pylist(self._rows).schema, self._arrow.string()
        return self._arrow.schema(
            [(one.name, text if self._arrow.types.is_null(one.type) else one.type) for one in found]
        )

    def _check_names(self) -> None:
        if other := {name for row in self._rows for name in row} - {*self._schema.names}:
            raise FormatError(
                f"{self.name}: the first records have the fields {self._schema.names}, a later one {min(other)!r}, and "
                "the rows of a table the same: choose fields with --key"
            )


class ParquetTarget(TableTarget):
    """A parquet file."""

    @staticmethod
    def open(arrow: Any, path: Path, schema: Any) -> Any:
        """Return a writer of a parquet file."""
        return importlib.import_module("pyarrow.parquet").ParquetWriter(path, schema, compression="zstd")


class StreamTarget(TableTarget):
    """An Arrow stream."""

    @staticmethod
    def open(arrow: Any, path: Path, schema: Any) -> Any:
        """Return a writer of an Arrow stream."""
        return arrow.ipc.new_stream(str(path), schema)


class FeatherTarget(TableTarget):
    """Arrow's file format."""

    @staticmethod
    def open(arrow: Any, path: Path, schema: Any) -> Any:
        """Return a writer of an Arrow file."""
        return arrow.ipc.new_file(str(path), schema)


class SavedTarget(StreamTarget):
    """A folder that `datasets.load_from_disk` reads."""

    def __init__(self, part: Path, name: Path, layout: Layout) -> None:
        extras.need("data", "datasets", to=f"writing the folder {name}")
        super().__init__(part.with_name(f"{part.name}.arrow"), name, layout)
        self._folder = part

    def close(self) -> None:
        """Have the package save the rows."""
        super().close()
        datasets = importlib.import_module("datasets")
        datasets.disable_progress_bars()
        datasets.Dataset.from_file(str(self.part)).save_to_disk(self._folder)
        self.part.unlink()


TARGETS: dict[str, type[Target]] = {
    ".jsonl": JsonTarget, ".json": JsonTarget, ".ndjson": JsonTarget, ".txt": TextTarget, ".parquet": ParquetTarget,
    ".arrow": StreamTarget, ".feather": FeatherTarget, "": SavedTarget,
}  # fmt: skip
"""Targets by suffix; a name without one is a folder that `datasets` reads."""


def target_of(out: Path) -> type[Target]:
    """Return the target that a name says. Raises ConfigError if it says none."""
    packed = without_packing(out) != out
    found = TARGETS.get(without_packing(out).suffix)
    if found and (not packed or issubclass(found, LineTarget)):
        return found
    written = ", ".join(filter(None, TARGETS))
    raise ConfigError(
        f"--out {out}: the name says no format that is written: {written}, lines also packed ({', '.join(PACKERS)}), or "
        "without a suffix a folder as datasets saves it"
    )
