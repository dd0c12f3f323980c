"""The zip archive of `torch.save`, written: laid out from names and sizes alone, filled in any order.

Only stored records, each with its sizes in its local header; zip64 where a size or an offset needs it. Source: PKWARE's
APPNOTE 6.3, sections 4.3 and 4.5; torch's `serialization.py` for what an archive of it holds. What a pickle names of
torch is written as a name: torch itself is not imported.
"""

import collections
import io
import pickle
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from isal import isal_zlib

from mconv.convert.formats.dtype import DType, of_torch
from mconv.convert.formats.unpickle import STORAGES

ALIGNMENT = 64
"""torch aligns records so that they can be mapped; an unaligned one would force a copy."""
ZIP64_FROM = 1 << 31
EPOCH = 0x21
"""1 January 1980, zip's first day."""


# ---- the pickle ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Promise:
    """A contiguous tensor in a pickle whose bytes will be written later. It unpickles as a torch.Tensor."""

    shape: tuple[int, ...]
    dtype: DType
    key: str

    @property
    def stride(self) -> tuple[int, ...]:
        """The number of elements to the next one along each axis."""
        return tuple(prod(self.shape[i + 1 :]) for i in range(len(self.shape)))


@dataclass(frozen=True, slots=True)
class _Slot:
    """The storage of a promise, in a pickle."""

    promise: Promise


@dataclass(frozen=True, slots=True)
class _Named:
    """A class or function of torch, by its name, in a pickle."""

    module: str
    name: str


REBUILD = _Named("torch._utils", "_rebuild_tensor_v2")
STORAGE_OF = {dtype: _Named("torch", name) for name, dtype in STORAGES.items()}
_PythonPickler: Any = pickle._Pickler


class _Pickler(_PythonPickler):
    """Writes names of torch without importing it; notes the tensors that it meets, under keys of its own.

    The Python pickler, not the C one: that looks up whatever it names.
    """

    dispatch: ClassVar[dict[type, Any]] = dict(_PythonPickler.dispatch)

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)
        self.tensors: dict[str, Any] = {}
        if "torch" in sys.modules:  # else nobody has made a tensor
            kinds = {sys.modules["torch"].Tensor: _Pickler.save_tensor}
            self.dispatch = self.dispatch | kinds  # type: ignore[misc]  # this pickler's own

    def persistent_id(self, obj: object) -> tuple[Any, ...] | None:
        if isinstance(obj, _Slot):
            made = obj.promise
            return ("storage", STORAGE_OF[made.dtype], made.key, "cpu", prod(made.shape))
        return None

    def save_promise(self, made: Promise) -> None:
        self.rebuilt(made)
        self.memoize(made)

    def save_tensor(self, tensor: Any) -> None:
        made = Promise(tuple(tensor.shape), of_torch(tensor.dtype), f"t{len(self.tensors)}")
        self.tensors[made.key] = tensor
        self.rebuilt(made)
        self.memoize(tensor)

    def rebuilt(self, made: Promise) -> None:
        self.save(REBUILD)
        self.save((_Slot(made), 0, made.shape, made.stride, False, collections.OrderedDict()))
        self.write(pickle.REDUCE)

    def save_named(self, named: _Named) -> None:
        self.write(pickle.GLOBAL + f"{named.module}\n{named.name}\n".encode())
        self.memoize(named)

    def save_dtype(self, dtype: DType) -> None:
        self.write(pickle.GLOBAL + f"torch\n{dtype.name}\n".encode())
        self.memoize(dtype)

    dispatch |= {Promise: save_promise, _Named: save_named, DType: save_dtype}


def _pickled(tree: object) -> tuple[bytes, dict[str, bytes]]:
    """Return the pickle of `tree`, and the bytes of the tensors in it by their keys."""
    pickler = _Pickler(out := io.BytesIO())
    pickler.dump(tree)
    if not pickler.tensors:
        return out.getvalue(), {}
    from mconv.convert.formats.mapped import bytes_of

    return out.getvalue(), {key: bytes(bytes_of(tensor.cpu())) for key, tensor in pickler.tensors.items()}


# ---- the archive -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Record:
    """One file of an archive: its name, where its local header starts, its size, and its bytes if they are known."""

    name: bytes
    at: int
    size: int
    data: bytes | None

    @property
    def begin(self) -> int:
        """The offset of the record's bytes."""
        start = self.at + 30 + len(self.name) + (20 if self.size >= ZIP64_FROM else 0) + 4
        return start + -start % ALIGNMENT

    def local(self, crc: int) -> bytes:
        """Return the record's local header, padded to the alignment."""
        sizes, extra = _sizes(self.size)
        pad = self.begin - self.at - 30 - len(self.name) - len(extra) - 4
        extra += b"FB" + struct.pack("<H", pad) + b"Z" * pad
        version = 45 if self.size >= ZIP64_FROM else 20
        head = (b"PK\3\4", version, 0, 0, 0, EPOCH, crc, *sizes, len(self.name), len(extra))
        return struct.pack("<4s5H3I2H", *head) + self.name + extra

    def central(self, crc: int) -> bytes:
        """Return the record's entry in the directory at the end."""
        far = self.at >= ZIP64_FROM
        sizes, extra = _sizes(self.size)
        wide = extra[4:] + (struct.pack("<Q", self.at) if far else b"")
        extra = struct.pack("<2H", 1, len(wide)) + wide if wide else b""
        at = 0xFFFFFFFF if far else self.at
        version = 45 if wide else 20
        head = (b"PK\1\2", version, version, 0, 0, 0, EPOCH, crc, *sizes, len(self.name), len(extra), 0, 0, 0, 0, at)
        return struct.pack("<4s6H3I5H2I", *head) + self.name + extra


def _sizes(size: int) -> tuple[tuple[int, int], bytes]:
    """Both size fields of a header, and the zip64 field that stands in for them where they are too large."""
    if size < ZIP64_FROM:
        return (size, size), b""
    return (0xFFFFFFFF, 0xFFFFFFFF), struct.pack("<2H2Q", 1, 16, size, size)


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive that is laid out: the object, the bytes of each `Promise` in it, the directory."""

    records: tuple[Record, ...]

    @property
    def directory(self) -> int:
        """The offset of the directory."""
        return self.records[-1].begin + self.records[-1].size

    @property
    def size(self) -> int:
        return self.directory + len(self._directory(dict.fromkeys((r.name for r in self.records), 0)))

    def begin(self, key: str) -> int:
        """Return the offset of the bytes of the promise with this key."""
        return next(r.begin for r in self.records if r.name == _name(f"data/{key}"))

    def begins(self) -> dict[str, int]:
        """The offset of each promise's bytes, by key."""
        head = len(_name("data/"))
        return {r.name[head:].decode(): r.begin for r in self.records if r.data is None}

    def write(self, file: BinaryIO, *, start: int, crcs: Mapping[str, int]) -> None:
        """Write all but the promised bytes into `file` from `start` on; `crcs` are those of the promises, by key."""
        known = {_name(f"data/{key}"): crc for key, crc in crcs.items()}
        known |= {r.name: isal_zlib.crc32(r.data) for r in self.records if r.data is not None}
        for record in self.records:
            file.seek(start + record.at)
            file.write(record.local(known[record.name]) + (record.data or b""))
        file.seek(start + self.directory)
        file.write(self._directory(known))

    def stream(self, file: BinaryIO, promised: Mapping[str, memoryview]) -> None:
        """Write all of it at the file's position, front to back; `promised` are the bytes of the promises, by key."""
        data: dict[bytes, bytes | memoryview] = {r.name: r.data for r in self.records if r.data is not None}
        data |= {_name(f"data/{key}"): held for key, held in promised.items()}
        crcs = {name: isal_zlib.crc32(held) for name, held in data.items()}
        for record in self.records:
            file.write(record.local(crcs[record.name]))
            file.write(data[record.name])
        file.write(self._directory(crcs))

    def _directory(self, crcs: Mapping[bytes, int]) -> bytes:
        entries = b"".join(record.central(crcs[record.name]) for record in self.records)
        count, at, size = len(self.records), self.directory, len(entries)
        wide = count >= 0xFFFF or max(at, size) >= ZIP64_FROM
        if wide:
            end64 = (b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, at)
            entries += struct.pack("<4sQ2H2I4Q", *end64) + struct.pack("<4sIQI", b"PK\6\7", 0, at + size, 1)
            count, size, at = min(count, 0xFFFF), 0xFFFFFFFF, 0xFFFFFFFF
        return entries + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, at, 0)


def _name(name: str) -> bytes:
    return f"archive/{name}".encode()


def lay_out(tree: object, promised: Sequence[tuple[str, int]] = ()) -> Archive:
    """Lay out an archive of `tree`: plain values, argparse.Namespace, small tensors, and promises (key, bytes)."""
    pickled, tensors = _pickled(tree)
    contents: list[tuple[str, int | bytes]] = [("data.pkl", pickled), ("byteorder", b"little")]
    contents += [(f"data/{key}", nbytes) for key, nbytes in promised]
    contents += [(f"data/{key}", held) for key, held in tensors.items()]
    contents.append(("version", b"3\n"))
    records, at = [], 0
    for name, content in contents:
        data = content if isinstance(content, bytes) else None
        size = content if isinstance(content, int) else len(content)
        records.append(Record(_name(name), at, size, data))
        at = records[-1].begin + size
    return Archive(tuple(records))


def save(path: Path, tree: object) -> None:
    """Write a small archive at once."""
    with path.open("wb") as file:
        lay_out(tree).stream(file, {})
