"""Text in: the documents of a jsonl, compressed jsonl or parquet file, one after the other."""

import gzip
import importlib
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mconv.errors import FormatError, MconvError


def documents(path: Path, *, key: str) -> Iterator[str]:
    """The text under `key` of each record, in order. Raises FormatError with file and line on a record that has none."""
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    return _parquet(path, key) if path.suffix == ".parquet" else _jsonl(path, key)


def _jsonl(path: Path, key: str) -> Iterator[str]:
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _text(line, key, f"{path}:{number}")
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise FormatError(
            f"{path}: does not unpack as {path.suffix} ({error}); it is cut or of another format"
        ) from error


def _text(line: bytes, key: str, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise FormatError(f"{where}: not JSON: {error}") from error
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
