"""Write a pair of `.bin` and `.idx`, bounded in memory, so that a killed run can go on."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from mconv.convert.folders.staging import sync
from mconv.errors import MconvError
from mconv.train.data.encoded import Sequences
from mconv.train.data.index import CHUNK, DTYPES, MAGIC

CODES = {np.dtype(kind): code for code, kind in DTYPES.items()}
"""The code in the file of each integer type."""
LENGTH = np.dtype(np.int32)


@dataclass(slots=True)
class PairTotals:
    """What a pair holds so far."""

    sequences: int = 0
    tokens: int = 0
    max_id: int = -1


class PairWriter:
    """A .bin that grows, and beside it the lengths of its sequences, of which the .idx is made at the end."""

    def __init__(self, data: Path, lengths: Path, dtype: str, totals: PairTotals) -> None:
        """Open a pair to go on behind `totals`; what was written after that is cut off."""
        self.totals = totals
        sizes = {data: totals.tokens * np.dtype(dtype).itemsize, lengths: totals.sequences * LENGTH.itemsize}
        self._files = [_open_at(path, size) for path, size in sizes.items()]

    def add(self, found: Sequences) -> None:
        """Append sequences."""
        for file, values in zip(self._files, found, strict=True):
            file.write(values.data)
        self.totals.sequences += len(found.lengths)
        self.totals.tokens += len(found.ids)
        if found.ids.size:
            self.totals.max_id = max(self.totals.max_id, int(found.ids.max()))

    def sync(self) -> None:
        """Have the disk hold what was appended."""
        for file in self._files:
            file.flush()
            sync(Path(file.name), data_only=True)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def _open_at(path: Path, size: int) -> BinaryIO:
    """Open a file for writing behind its first `size` bytes. Raises MconvError if it has fewer."""
    if (path.stat().st_size if path.exists() else 0) < size:
        raise MconvError(f"{path} is missing or was cut short; leave --resume out to start again")
    file = path.open("r+b" if size else "wb")
    file.truncate(size)
    file.seek(size)
    return file


def header(dtype: np.dtype[np.generic], sequences: int, ends: int) -> bytes:
    """Return the first bytes of an .idx: the format, its version, and how many entries its lists have."""
    return MAGIC + struct.pack("<QBQQ", 1, CODES[dtype], sequences, ends)


def write_index(index: Path, lengths: Path, dtype: str, *, documents: bool) -> None:
    """Write an .idx from the lengths of its sequences, piece by piece; with `documents`, each sequence is one."""
    with index.open("wb") as file:
        for part in _index(np.memmap(lengths, LENGTH, "r"), np.dtype(dtype), documents=documents):
            file.write(part)


def _index(lengths: npt.NDArray[np.int32], dtype: np.dtype[np.generic], *, documents: bool) -> Iterator[bytes]:
    """Yield an .idx piece by piece: its header, the lengths, the first byte of each sequence, the ends of documents."""
    ends = len(lengths) + 1 if documents else 1
    yield header(dtype, len(lengths), ends)
    parts = [lengths[at : at + CHUNK] for at in range(0, len(lengths), CHUNK)]
    for part in parts:
        yield part.tobytes()
    start = 0
    for part in parts:
        after = start + np.cumsum(part, dtype=np.int64) * dtype.itemsize
        yield (after - part.astype(np.int64) * dtype.itemsize).tobytes()
        start = int(after[-1])
    for at in range(0, ends, CHUNK):
        yield np.arange(at, min(at + CHUNK, ends), dtype=np.int64).tobytes()
