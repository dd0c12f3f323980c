"""The zip archive of `torch.save`: read without loading a tensor (`pack.py` writes it).

An archive is `NAME/data.pkl` (the object, its tensors as references to storages) and one stored, uncompressed record
`NAME/data/KEY` for each storage. It may also lie inside a larger file, as in a `.distcp`. Source: torch's
`serialization.py` and `caffe2/serialize`.
"""

import io
import struct
import zipfile
from collections.abc import Callable
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from isal import isal_zlib

from mconv.convert.formats.tensors import Located
from mconv.convert.formats.unpickle import Pending, loads
from mconv.errors import FormatError

PICKLE_LIMIT = 1 << 30
BLOCK = 8 << 20
"""Bytes that are looked at together."""
SMALL = 1024
"""Bytes of a pickle below which it holds one tensor: thousands of chunks of one shape have the same."""


class Window(io.RawIOBase):
    """The bytes [start, start + length) of a file, as a file."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._length)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        self._file.seek(self._start + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data


def _contiguous(pending: Pending) -> bool:
    expected, step = [], 1
    for n in reversed(pending.shape):
        expected.append(step)
        step *= n
    return all(n == 1 or s == e for n, s, e in zip(pending.shape, pending.stride, reversed(expected), strict=True))


def _data_offset(file: BinaryIO, start: int, info: zipfile.ZipInfo) -> int:
    """Return the offset of a record's bytes, after its local header of varying length; -1 if it is not there."""
    if start + info.header_offset < 0:
        return -1
    file.seek(start + info.header_offset + 26)
    lengths = file.read(4)
    if len(lengths) < 4:
        return -1
    name, extra = struct.unpack("<HH", lengths)
    return start + info.header_offset + 30 + name + extra


def read(path: Path, *, start: int = 0, length: int | None = None) -> Any:
    """The object in the archive at [start, start + length) of `path`, each tensor as `Located`.

    Raises FormatError if the bytes are not such an archive, are damaged, or name what mconv does not load.
    """
    with path.open("rb") as file:
        size = path.stat().st_size - start if length is None else length
        try:
            archive = zipfile.ZipFile(Window(file, start, size))
            records = {info.filename.split("/", 1)[-1]: info for info in archive.infolist()}
            if records["data.pkl"].file_size > PICKLE_LIMIT:
                raise FormatError(f"{path}: its data.pkl is larger than {PICKLE_LIMIT} bytes")
            pickled = archive.read(records["data.pkl"])
            if "byteorder" in records and (order := archive.read(records["byteorder"]).strip()) != b"little":
                raise FormatError(
                    f"{path}: its bytes are in {order[:16].decode(errors='replace')}-endian order; mconv reads little"
                )
        except FormatError:
            raise
        except Exception as error:  # zipfile raises BadZipFile, KeyError, struct.error, NotImplementedError, ...
            raise FormatError(
                f"{path}: not an archive of torch.save, or truncated ({type(error).__name__}: {error}); copy it again"
            ) from error
        tree = (_loads_small if len(pickled) < SMALL else loads)(pickled, where=str(path))
        try:
            return _locate(tree, lambda pending, name: _place(path, file, start, size, records, pending, name), {})
        except RecursionError as error:
            raise FormatError(f"{path}: its pickle nests too deep to be a checkpoint") from error


def check(path: Path, *, start: int = 0, length: int | None = None) -> None:
    """Compare every record of an archive with its checksum, which torch writes and does not look at when it loads.

    Raises FormatError where a byte is another one than was written.
    """
    with path.open("rb") as file:
        window = Window(file, start, path.stat().st_size - start if length is None else length)
        try:
            for info in zipfile.ZipFile(window).infolist():
                if _crc(file, _data_offset(file, start, info), info.file_size) != info.CRC:
                    raise FormatError(f"{path}: {info.filename} is not what was written: the file is damaged")
        except FormatError:
            raise
        except Exception as error:
            raise FormatError(f"{path}: no archive of torch.save at {start}: the file is damaged ({error})") from error


def _crc(file: BinaryIO, offset: int, size: int) -> int:
    """The crc32 of a record's bytes."""
    file.seek(offset)
    crc = 0
    while size and (data := file.read(min(size, BLOCK))):
        crc, size = isal_zlib.crc32(data, crc), size - len(data)
    return crc


@lru_cache(maxsize=256)
def _loads_small(pickled: bytes, *, where: str) -> Any:
    return loads(pickled, where=where)


def _place(
    path: Path,
    file: BinaryIO,
    start: int,
    size: int,
    records: dict[str, zipfile.ZipInfo],
    pending: Pending,
    name: str,
) -> Located:
    info = records.get(f"data/{pending.storage.key}")
    width = pending.dtype.itemsize
    if info is None or info.compress_type != zipfile.ZIP_STORED or not _contiguous(pending):
        raise FormatError(
            f"{path}: {name or 'a tensor'} of shape {pending.shape} is not stored plainly; save it again contiguous"
        )
    first = _data_offset(file, start, info)
    offset = first + pending.offset * width
    end = pending.offset + prod(pending.shape)
    if (
        min(first, pending.offset, *pending.shape, 0) < 0
        or end * width > info.file_size
        or offset + prod(pending.shape) * width > start + size
    ):
        raise FormatError(
            f"{path}: {name or 'a tensor'} of shape {pending.shape} reaches past the end of its storage; "
            "the file is damaged"
        )
    return Located(path, offset, pending.dtype, pending.shape)


def _locate(tree: Any, place: Callable[[Pending, str], Located], seen: dict[int, Any], name: str = "") -> Any:
    """The tree with each Pending replaced. A container that is referred to twice is walked once."""
    if isinstance(tree, Pending):
        return place(tree, name)
    if not isinstance(tree, (dict, list, tuple)):
        return tree
    if id(tree) not in seen:
        if isinstance(tree, dict):
            seen[id(tree)] = {key: _locate(value, place, seen, str(key)[:120]) for key, value in tree.items()}
        else:
            seen[id(tree)] = [_locate(value, place, seen, name) for value in tree]
    return seen[id(tree)]
