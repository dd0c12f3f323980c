"""Join prefixes, or the first documents of each, into one: the bytes of megatron-core's `add_index`, streamed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from mconv.errors import FormatError
from mconv.train.data.index import CHUNK, HEADER, Indexed, open_index
from mconv.train.data.pairs import header

COPIED = 1 << 24
"""Bytes that are copied together."""
WIDTHS = {"lengths": 4, "starts": 8, "ends": 8}
"""The three lists of an index, and the bytes of an entry."""
Ints = npt.NDArray[np.integer]
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The first documents of a pair of files, or all of them."""

    prefix: Path
    dtype: np.dtype[np.generic]
    sequences: int
    ends: int
    """Number of documents that the index marks."""
    bytes: int
    """Size of these documents in the .bin."""

    @classmethod
    def of(cls, data: Indexed, documents: int | None = None) -> "Head":
        """Return so many documents from the start; None for all."""
        ends = data.ends[:documents]
        sequences = len(data) if documents is None else documents
        if documents and len(ends):
            sequences = int(ends[-1])
        width = data.tokens.dtype.itemsize
        size = int(data.starts[sequences - 1]) + int(data.lengths[sequences - 1]) * width if sequences else 0
        return cls(prefix=data.prefix, dtype=data.tokens.dtype, sequences=sequences, ends=len(ends), bytes=size)

    @property
    def tokens(self) -> int:
        return self.bytes // self.dtype.itemsize

    @property
    def index_bytes(self) -> int:
        """Size of an .idx of these documents alone."""
        return HEADER + 12 * self.sequences + 8 * (1 + self.ends)


def join(heads: Sequence[Head], data: Path, index: Path, progress: Progress = lambda n: None) -> None:
    """Write `data` (.bin) and `index` (.idx) from datasets of one dtype, one behind the other; each is open by itself."""
    counts = [sum(head.sequences for head in heads), 1 + sum(head.ends for head in heads)]
    with data.open("wb") as tokens, index.open("wb") as out:
        out.write(header(heads[0].dtype, *counts))
        lists = _Lists(out, *counts)
        lists.add("ends", np.zeros(1, np.int64))
        bytes_before = sequences_before = 0
        for head in heads:
            found = open_index(head.prefix)
            _copy(found, head, tokens, progress)
            for part in _chunks(found.lengths, head.sequences):
                lists.add("lengths", part)
            for part in _chunks(found.starts, head.sequences):
                lists.add("starts", part + bytes_before)
            for part in _chunks(found.ends, head.ends):
                lists.add("ends", part + sequences_before)
            bytes_before += head.bytes
            sequences_before += head.sequences


class _Lists:
    """The three lists of an index, which are written side by side."""

    def __init__(self, out: IO[bytes], sequences: int, documents: int) -> None:
        sizes = (sequences * WIDTHS["lengths"], sequences * WIDTHS["starts"], documents * WIDTHS["ends"])
        self._out = out
        self._at = dict(zip(WIDTHS, accumulate(sizes, initial=HEADER), strict=False))

    def add(self, name: str, numbers: Ints) -> None:
        """Append numbers to a list."""
        self._out.seek(self._at[name])
        self._at[name] += self._out.write(numbers.astype(f"<i{WIDTHS[name]}").tobytes())


def _copy(found: Indexed, head: Head, out: IO[bytes], progress: Progress) -> None:
    """Append the bytes of a head to a file. Raises FormatError if its files are no longer those that were looked at."""
    missing = head.bytes
    if found.tokens.bytes < missing or len(found) < head.sequences or found.tokens.dtype != head.dtype:
        raise FormatError(f"{found.prefix} was written anew meanwhile; run the command again")
    with found.tokens.path.open("rb", buffering=0) as file:
        while missing:
            piece = file.read(min(missing, COPIED))
            if not piece:
                raise FormatError(f"{found.tokens.path} ends {missing} bytes too early: it was cut short meanwhile")
            out.write(piece)
            missing -= len(piece)
            progress(len(piece))


def _chunks(numbers: Ints, count: int) -> Iterator[Ints]:
    """Yield the first `count` numbers in parts."""
    for start in range(0, count, CHUNK):
        yield numbers[start : min(start + CHUNK, count)]
