"""Text in: the documents of a jsonl, plain text (either compressed) or parquet file, one after the other."""

import gzip
import importlib
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mconv.errors import FormatError, MconvError

LONGEST = 1 << 28
"""Bytes of a line: without an end to it, a file could fill any memory, however small it is packed."""
PIECE = 1 << 13
"""Packed bytes that are unpacked together: at most 256 MiB of what is nothing but repetition."""
ROWS = 256
"""Rows of a parquet file that are read together."""


def documents(path: Path, *, key: str) -> Iterator[str]:
    """The text under `key` of each record, in order; of a .txt file, each line that is not blank, without its ends.

    Raises FormatError with file and line on a record that has no text.
    """
    if path.suffix == ".parquet" and path.is_file():
        return _parquet(path, key)
    if (path.with_suffix("") if path.suffix in PACKED else path).suffix == ".txt":
        return (_plain(line, where) for line, where in lines(path))
    return (_text(line, key, where) for line, where in lines(path))


def lines(path: Path) -> Iterator[tuple[bytes, str]]:
    """(line, file:number) of each line that is not blank, unpacked. Raises FormatError where that cannot be."""
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    try:
        with _open(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
                if len(line) == LONGEST:
                    raise FormatError(
                        f"{path}:{number}: the line is longer than {LONGEST >> 20} MiB; one document a line"
                    )
                if line.strip():
                    yield line, f"{path}:{number}"
    except _unpacking_errors() as error:
        raise FormatError(
            f"{path}: does not unpack as {path.suffix} ({error}); it is cut or of another format"
        ) from error


def _unpacking_errors() -> tuple[type[Exception], ...]:
    """What the readers raise on a damaged file; zstandard's own where that was imported."""
    zstandard: Any = sys.modules.get("zstandard")
    return OSError, EOFError, lzma.LZMAError, zlib.error, *([zstandard.ZstdError] if zstandard else [])


def _plain(line: bytes, where: str) -> str:
    """A line of a text file: one document. A mark of byte order at the start of a file is none of it."""
    try:
        return line.decode("utf-8-sig" if where.endswith(":1") else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: the text is not UTF-8 ({error.reason}); convert the file first") from error


def parsed(line: bytes, where: str) -> Any:
    """A line's JSON. Raises FormatError if it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not JSON: {error}") from error


def _text(line: bytes, key: str, where: str) -> str:
    record = parsed(line, where)
    if not isinstance(record, dict) or not isinstance(record.get(key), str):
        raise FormatError(f"{where}: no text under {key!r} (the record has {named(record)}); name the field with --key")
    text: str = record[key]
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{where}: the text is not Unicode ({error.reason}); drop or mend that record") from error
    return text


def named(record: Any) -> str:
    """The fields of a record, or what else it is: for an error, so the first of them."""
    if not isinstance(record, dict):
        return type(record).__name__
    return f"{sorted(record)[:20]}{' and more' * (len(record) > 20)}"


def _open(path: Path) -> Any:
    """The file's lines as bytes, unpacked by what its name ends in."""
    return PACKED.get(path.suffix, Path.open)(path, "rb")


def _open_zst(path: Path, _: str) -> Any:
    return io.BufferedReader(_Joined(_frames(path)), 1 << 20)


def _frames(path: Path) -> Iterator[bytes]:
    """What a .zst unpacks to, piece by piece. To the package's own reader, a cut file is one that has ended."""
    module = _optional("zstandard", path)
    frame, rest = None, b""
    with path.open("rb") as file:
        while packed := rest or file.read(PIECE):
            frame = frame or module.ZstdDecompressor().decompressobj()
            yield frame.decompress(packed)
            rest = frame.unused_data
            frame = None if frame.eof else frame
    if frame:
        raise EOFError("it ends in the middle of a frame")


class _Joined(io.RawIOBase):
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
"""What unpacks a file, by what its name ends in."""


def _parquet(path: Path, key: str) -> Iterator[str]:
    module = _optional("pyarrow.parquet", path)
    try:
        table = module.ParquetFile(path)
        if key not in table.schema_arrow.names:
            raise FormatError(f"{path}: no column {key!r}, only {table.schema_arrow.names}; name it with --key")
        texts = (text for batch in table.iter_batches(ROWS, columns=[key]) for text in batch.column(0).to_pylist())
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise FormatError(f"{path}: column {key!r} holds {text!r} in row {row}, which is no text")
            yield text
    except FormatError:
        raise
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: not a parquet file, or damaged ({error})") from error


def _optional(module: str, path: Path) -> Any:
    """An optional package, or the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MconvError(f"{path}: reading {path.suffix} needs {package}: pip install {package}") from error
