"""Read the documents of a jsonl, plain text (either compressed) or parquet file, one after the other."""

import gzip
import importlib
import io
import json
import lzma
import sys
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mconv import extras
from mconv.errors import FormatError
from mconv.train.data.bad_records import BadRecord, Kind, OnBad, RecordLocation, Rejected, stop
from mconv.train.data.pool import BATCH, FULL

LONGEST = 1 << 28
"""Bytes of a line: without an end to it, a file could fill any memory, however small it is packed."""
PIECE = 1 << 13
"""Packed bytes that are unpacked together: at most 256 MiB of what is nothing but repetition."""
READERS = {".zst": "zstandard", ".parquet": "pyarrow"}
"""Packages that files are read with, by what their names end in."""
ROWS = 256
"""Rows of a parquet file that are read together."""
ROW = FULL // BATCH
"""Bytes that a row of a parquet file is taken for."""


class Raw(NamedTuple):
    """A record as it was read, before anything in it is looked at."""

    place: RecordLocation
    value: Any
    """A line's bytes, a row's fields, or Rejected."""
    size: int
    """Bytes, or about as many."""


def check_installed(path: Path) -> None:
    """Raise MissingPackage if what reads a file of this kind is not installed."""
    if path.suffix in READERS:
        extras.need("data", READERS[path.suffix], to=f"reading {path}")


def documents(path: Path, *, key: str, bad: OnBad = stop) -> Iterator[str | Rejected]:
    """Yield the text under `key` of each record, in order; of a .txt file, each line that is not blank, stripped.

    A record without a text is what `bad` makes of it: an error with file, line and kind, or Rejected.
    """
    if path.suffix == ".parquet" and path.is_file():
        return _checked(_cells(path, key), lambda value, _: _text_of(value, key), bad)
    if (path.with_suffix("") if path.suffix in PACKED else path).suffix == ".txt":
        return _checked(lines(path), _plain, bad)
    return _checked(lines(path), lambda line, _: _text(line, key), bad)


def records(path: Path, *, bad: OnBad = stop) -> Iterator[Raw]:
    """Yield each record of a file of JSON lines or a parquet file, as it was read."""
    if path.suffix == ".parquet" and path.is_file():
        for value, place in _rows(path):
            yield Raw(place, bad(value, place) if isinstance(value, BadRecord) else value, ROW)
        return
    for line, place in lines(path):
        if isinstance(line, BadRecord):
            yield Raw(place, bad(line, place), 0)
        else:
            yield Raw(place, line, len(line))


def _checked(
    found: Iterable[tuple[Any, RecordLocation]], read: Callable[[Any, RecordLocation], str], bad: OnBad
) -> Iterator[str | Rejected]:
    """Yield the text that `read` finds in each record, or what `bad` makes of one that has none."""
    for value, place in found:
        try:
            if isinstance(value, BadRecord):
                raise value
            text: str | Rejected = read(value, place)
        except BadRecord as error:
            text = bad(error, place)
        yield text


def lines(path: Path) -> Iterator[tuple[bytes | BadRecord, RecordLocation]]:
    """Yield (line, place) of each line that is not blank, unpacked. Raises FormatError where that cannot be."""
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    name = str(path)
    try:
        with _open(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
                if len(line) == LONGEST:
                    yield _passed(file, line), RecordLocation(name, number)
                elif line.strip():
                    yield line, RecordLocation(name, number)
    except _unpacking_errors() as error:
        raise FormatError(
            f"{path}: does not unpack as {path.suffix} ({error}); it is cut or of another format"
        ) from error


def _passed(file: Any, line: bytes) -> BadRecord:
    """Read on to the end of a line that is too long, and return what is wrong with it."""
    while line and not line.endswith(b"\n"):
        line = file.readline(LONGEST)
    return BadRecord(Kind.TOO_LONG, f"the line is longer than {LONGEST >> 20} MiB; one document a line")


def _unpacking_errors() -> tuple[type[Exception], ...]:
    """Return what the readers raise on a damaged file; zstandard's own where that was imported."""
    zstandard: Any = sys.modules.get("zstandard")
    return OSError, EOFError, lzma.LZMAError, zlib.error, *([zstandard.ZstdError] if zstandard else [])


def decoded(line: bytes) -> str:
    """Return a line as text, without a byte order mark at its start. Raises BadRecord if it is not UTF-8."""
    try:
        return line.decode("utf-8-sig" if line.startswith(BOM_UTF8) else "utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord(
            Kind.NOT_UTF8, f"the text is not UTF-8 (byte {error.start}: {error.reason}); convert the file first"
        ) from None


def _plain(line: bytes, place: RecordLocation) -> str:
    """Return a line of a text file: one document. A byte order mark inside the file is part of the text."""
    text = decoded(line)
    return ("\ufeff" * (place.line > 1 and line.startswith(BOM_UTF8)) + text).strip()


def parsed(line: bytes) -> Any:
    """Return a line's JSON. Raises BadRecord if it is none, or has a field twice."""
    text = decoded(line)
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadRecord):
            raise
        why = f"{error.msg} at letter {error.pos}" if isinstance(error, json.JSONDecodeError) else error
        raise BadRecord(Kind.NOT_JSON, f"not JSON: {why}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a JSON object. Raises BadRecord where a name is there twice, with two values."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        for name, value in pairs:
            if fields[name] != value:
                raise BadRecord(Kind.CONTRADICTION, f"the field {name!r} is there twice, with two values")
    return fields


DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _text(line: bytes, key: str) -> str:
    """Return the text under `key` of a JSON line."""
    record = parsed(line)
    if not isinstance(record, dict) or key not in record:
        kind = Kind.NO_FIELD if isinstance(record, dict) else Kind.NO_OBJECT
        raise BadRecord(kind, f"no text under {key!r} (the record has {named(record)}); name the field with --key")
    return _text_of(record[key], key)


def _text_of(value: Any, key: str) -> str:
    """Return a field's value as text that can be encoded."""
    if not isinstance(value, str):
        kind = Kind.NULL if value is None else Kind.WRONG_TYPE
        raise BadRecord(kind, f"no text under {key!r}: it is {in_words(value)}")
    return unicode(value)


def unicode(text: str) -> str:
    """Return the text. Raises BadRecord if it holds half of a surrogate pair, which no encoding writes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(Kind.NOT_UNICODE, f"the text is not Unicode ({error.reason}); drop or mend that record") from None
    return text


def in_words(value: Any) -> str:
    """Return in words what a JSON value is: `null`, `the number 7`, `a list`."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"the number {value!r:.20}"
    words: dict[type, str] = {str: "text", list: "a list", dict: "an object"}
    return words.get(type(value), type(value).__name__)


def named(record: Any) -> str:
    """Return the first fields of a record, or its type, for an error message."""
    if not isinstance(record, dict):
        return type(record).__name__
    return f"{sorted(record)[:20]}{' and more' * (len(record) > 20)}"


def _open(path: Path) -> Any:
    """Open a file as lines of bytes, unpacked by what its name ends in."""
    return PACKED.get(path.suffix, Path.open)(path, "rb")


def _open_zst(path: Path, _: str) -> Any:
    return io.BufferedReader(_PieceReader(_frames(path)), 1 << 20)


def _frames(path: Path) -> Iterator[bytes]:
    """Yield what a .zst unpacks to. Raises EOFError if it is cut, which the package's own reader does not notice."""
    check_installed(path)
    module = importlib.import_module("zstandard")
    frame, rest = None, b""
    with path.open("rb") as file:
        while packed := rest or file.read(PIECE):
            frame = frame or module.ZstdDecompressor().decompressobj()
            yield frame.decompress(packed)
            rest = frame.unused_data
            frame = None if frame.eof else frame
    if frame:
        raise EOFError("it ends in the middle of a frame")


class _PieceReader(io.RawIOBase):
    """Pieces of bytes as one file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not self._rest:
            if (piece := next(self._pieces, None)) is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(into), len(self._rest))
        into[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


PACKED: dict[str, Callable[[Path, str], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".zst": _open_zst}
"""Openers of packed files, by suffix."""


def _cells(path: Path, key: str) -> Iterator[tuple[Any, RecordLocation]]:
    """Yield (value, place) of each row of a column."""
    for fields, place in _rows(path, key):
        yield fields if isinstance(fields, BadRecord) else fields[key], place


def _rows(path: Path, key: str | None = None) -> Iterator[tuple[dict[str, Any] | BadRecord, RecordLocation]]:
    """Yield (fields, place) of each row of a parquet file; with `key`, of that column alone."""
    check_installed(path)
    module = importlib.import_module("pyarrow.parquet")
    name = str(path)
    try:
        table = module.ParquetFile(path)
        if key is not None and key not in table.schema_arrow.names:
            raise FormatError(f"{path}: no column {key!r}, only {table.schema_arrow.names}; name it with --key")
        batches = table.iter_batches(ROWS, columns=None if key is None else [key])
        rows = (row for batch in batches for row in _fields(batch))
        for number, row in enumerate(rows, 1):
            yield row, RecordLocation(name, number)
    except FormatError:
        raise
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: not a parquet file, or damaged ({error})") from error


def _fields(batch: Any) -> Iterator[dict[str, Any] | BadRecord]:
    """Yield the fields of each row of a batch."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        rows = [_row(batch.slice(number, 1)) for number in range(batch.num_rows)]
    yield from rows


def _row(batch: Any) -> dict[str, Any] | BadRecord:
    """Return the fields of a batch of one row, or what is wrong with them."""
    try:
        fields: dict[str, Any] = batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return BadRecord(Kind.NOT_UTF8, f"the text is not UTF-8 (byte {error.start}: {error.reason})")
    return fields
