"""Text in: the documents of a jsonl, plain text (either compressed) or parquet file, one after the other."""

import gzip
import importlib
import io
import json
import lzma
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mconv.errors import FormatError, MconvError


def documents(path: Path, *, key: str) -> Iterator[str]:
    """The text under `key` of each record, in order; of a .txt file, each line that is not blank, without its ends.

    Raises FormatError with file and line on a record that has no text.
    """
    if path.suffix == ".parquet" and path.is_file():
        return _parquet(path, key)
    if ".txt" in path.suffixes[-2:]:
        return (_plain(line, where) for line, where in lines(path))
    return (_text(line, key, where) for line, where in lines(path))


def lines(path: Path) -> Iterator[tuple[bytes, str]]:
    """(line, file:number) of each line that is not blank, unpacked. Raises FormatError where that cannot be."""
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
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
        keys = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise FormatError(f"{where}: no text under {key!r} (the record has {keys}); name the field with --key")
    text: str = record[key]
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{where}: the text is not Unicode ({error.reason}); drop or mend that record") from error
    return text


def _open(path: Path) -> Any:
    """The file's lines as bytes, unpacked by what its name ends in."""
    if path.suffix == ".zst":
        return io.BufferedReader(_optional("zstandard", path).open(path))  # its own reader knows no lines
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    return openers.get(path.suffix, open)(path, "rb")


def _parquet(path: Path, key: str) -> Iterator[str]:
    module = _optional("pyarrow.parquet", path)
    try:
        table = module.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: not a parquet file ({error})") from error
    if key not in table.schema_arrow.names:
        raise FormatError(f"{path}: no column {key!r}, only {table.schema_arrow.names}; name it with --key")
    for batch in table.iter_batches(columns=[key]):
        for text in batch.column(0).to_pylist():
            if not isinstance(text, str):
                raise FormatError(f"{path}: column {key!r} holds {text!r}, which is no text")
            yield text


def _optional(module: str, path: Path) -> Any:
    """An optional package, or the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MconvError(f"{path}: reading {path.suffix} needs {package}: pip install {package}") from error
