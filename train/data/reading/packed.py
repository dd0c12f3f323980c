"""Open plain and compressed files as bytes."""

import bz2
import gzip
import importlib
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mconv import extras
from mconv.errors import FormatError
from mconv.train.data.reading.expansion import Expansion

PIECE = 1 << 13
"""Packed bytes that are unpacked together: at most 256 MiB of what is nothing but repetition."""
PACKAGES = {".zst": "zstandard"}
"""Packages that files are unpacked with, by suffix; for the others Python's library is enough."""


@contextmanager
def unpacked(path: Path, expansion: Expansion | None = None) -> Iterator[Any]:
    """Yield a file open for reading, unpacked by its suffix. Raises FormatError where that cannot be, or is too much."""
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    try:
        with PACKED.get(path.suffix, Path.open)(path, "rb") as file:
            counted = _Counted(file, expansion) if expansion and path.suffix in PACKED else None
            yield io.BufferedReader(counted, 1 << 20) if counted else file
    except _unpacking_errors() as error:
        raise FormatError(
            f"{path}: does not unpack as {path.suffix} ({error}); it is cut or of another format"
        ) from error


def without_packing(path: Path) -> Path:
    """Return the path without the suffix of its compression."""
    return path.with_suffix("") if path.suffix in PACKED else path


def _unpacking_errors() -> tuple[type[Exception], ...]:
    """Return what the readers raise on a damaged file; zstandard's own where that was imported."""
    zstandard: Any = sys.modules.get("zstandard")
    return OSError, EOFError, lzma.LZMAError, zlib.error, *([zstandard.ZstdError] if zstandard else [])


def _open_zst(path: Path, _: str) -> Any:
    return io.BufferedReader(_PieceReader(_frames(path)), 1 << 20)


def _frames(path: Path) -> Iterator[bytes]:
    """Yield what a .zst unpacks to. Raises EOFError if it is cut, which the package's own reader does not notice."""
    extras.need("data", "zstandard", to=f"reading {path}")
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


class _Counted(io.RawIOBase):
    """An unpacked file, of which every byte is counted."""

    def __init__(self, file: Any, expansion: Expansion) -> None:
        self._file, self._expansion = file, expansion

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        size: int = self._file.readinto(into)
        self._expansion.add(size)
        return size


PACKED: dict[str, Callable[[Path, str], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zst}
"""Openers of packed files, by suffix."""
