"""A `.bin/.idx` pair on disk, written by any program and checked before use."""

import os
import struct
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mconv.errors import FormatError, refuse

MAGIC = b"MMIDIDX\x00\x00"
OLD_MAGIC = b"TNTIDX\x00\x00"
HEADER = 34
"""Bytes of magic, version, dtype code and the two counts."""
DTYPES: dict[int, type[np.generic]] = {
    1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16,
}  # fmt: skip
"""Integer types by their code in the file; 6 and 7 are floats, of which no program makes tokens."""
TEXT, ROLE = "-text", "-role"
"""Endings of the two prefixes of instruction data."""
CHUNK = 1 << 20
"""Tokens looked at together."""


class Tokens:
    """The ids of a .bin, read where they are asked for: nothing is mapped into memory, and a short read is an error.

    megatron-core's reader without a map takes what a single read gives, and leaves the rest of its array as it was.
    """

    def __init__(self, path: Path, dtype: type[np.generic]) -> None:
        self.path, self.dtype = path, np.dtype(dtype)
        self.bytes = path.stat().st_size

    @cached_property
    def _file(self) -> int:
        """The open file: not before it is read, because a folder may hold more prefixes than files may be open."""
        file = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, file)
        return file

    def __len__(self) -> int:
        return self.bytes // self.dtype.itemsize

    def __getitem__(self, part: slice) -> npt.NDArray[np.integer]:
        start, stop, _ = part.indices(len(self))
        return self.read(self.dtype, max(0, stop - start), start * self.dtype.itemsize)

    def read(self, dtype: npt.DTypeLike, count: int | np.integer, offset: int | np.integer) -> npt.NDArray[np.integer]:
        """Return `count` ids from byte `offset` on: megatron-core's call. Raises FormatError where the file has fewer."""
        found = np.empty(int(count), dtype)
        missing, at = found.view(np.uint8).data, int(offset)
        while missing:
            got = os.preadv(self._file, [missing], at)
            if not got:
                raise FormatError(f"{self.path} ends at byte {at}, in the middle of a sample: it was cut short meanwhile")
            missing, at = missing[got:], at + got
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """Sequences of token ids: what the index says of them, and where they are read."""

    prefix: Path
    lengths: npt.NDArray[np.int32]
    """Tokens of each sequence."""
    starts: npt.NDArray[np.int64]
    """First byte of each sequence in the .bin."""
    ends: npt.NDArray[np.int64]
    """Sequences before the end of each document; empty where the writer marked no documents, as Megatron-LLM did."""
    tokens: Tokens

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> npt.NDArray[np.integer]:
        return self.tokens.read(self.tokens.dtype, self.lengths[number], self.starts[number])

    def extremes(self, *, most: int | None = None) -> tuple[int, int]:
        """Return the smallest and the largest id: of all, or of parts spread over the file with about `most` ids."""
        starts = range(0, len(self.tokens), CHUNK)
        step = max(1, len(starts) * CHUNK // most) if most else 1
        parts = (self.tokens[start : start + CHUNK] for start in starts[::step])
        ends = [(int(part.min()), int(part.max())) for part in parts]
        return min((low for low, _ in ends), default=0), max((high for _, high in ends), default=-1)


def with_ending(prefix: Path, suffix: str) -> Path:
    """Return PREFIX with a suffix; `with_suffix` would cut a prefix that has a dot in its name."""
    return prefix.with_name(prefix.name + suffix)


def open_index(prefix: Path) -> Indexed:
    """Open PREFIX.bin and PREFIX.idx. Raises FormatError, with the file's name, on what is missing or damaged."""
    data, index = with_ending(prefix, ".bin"), with_ending(prefix, ".idx")
    refuse(missing(prefix)[:1], doing="reading data", kind=FormatError)
    dtype, sequences, documents = _header(index)
    sizes = [4 * sequences, 8 * sequences, 8 * documents]
    if not sequences or index.stat().st_size != HEADER + sum(sizes):
        raise FormatError(
            f"{index} is empty or damaged: {index.stat().st_size} bytes, its header says {HEADER + sum(sizes)}"
        )
    body = np.memmap(index, dtype=np.uint8, mode="r", offset=HEADER)
    lengths, starts, ends = np.split(body, np.cumsum(sizes)[:2])
    found = Indexed(
        prefix=prefix, lengths=lengths.view(np.int32), starts=starts.view(np.int64), ends=ends.view(np.int64)[1:],
        tokens=Tokens(data, dtype),
    )  # fmt: skip
    _check(found, index)
    if not documents or ends.view(np.int64)[0] != 0:
        raise FormatError(f"{index} is damaged: its documents do not begin at 0; tokenize again")
    return found


def missing(prefix: Path) -> list[str]:
    """Return a problem for each of PREFIX.bin and PREFIX.idx that is not there."""
    talks = prefix.name.endswith((TEXT, ROLE))
    command, made = ("instruct", str(prefix)[: -len(TEXT)]) if talks else ("tokenize", prefix)
    how = f"mconv data {command} ... --out {made} makes it"
    if prefix.suffix in (".bin", ".idx"):
        how = f"give the prefix without {prefix.suffix}"
    paths = (with_ending(prefix, ending) for ending in (".bin", ".idx"))
    return [f"{path}: no such file; {how}" for path in paths if not path.is_file()]


def _header(index: Path) -> tuple[type[np.generic], int, int]:
    """Return (dtype, sequences, entries of the list of documents)."""
    with index.open("rb") as file:
        head = file.read(HEADER)
    if head.startswith(OLD_MAGIC):
        raise FormatError(f"{index} is an index of fairseq's older kind (lazy or cached); make it anew as mmap")
    if not head.startswith(MAGIC) or len(head) < HEADER:
        raise FormatError(f"{index} is not an index of megatron-core, or truncated; tokenize again")
    version, code, sequences, documents = struct.unpack("<QBQQ", head[len(MAGIC) :])
    if version != 1 or code not in DTYPES:
        raise FormatError(f"{index} is damaged: version {version}, dtype code {code}; tokenize again")
    return DTYPES[code], sequences, documents


def _check(found: Indexed, index: Path) -> None:
    """Check that the sequences are contiguous and fill the file: readers do not look again."""
    ids, width = found.tokens, found.tokens.dtype.itemsize
    after = np.cumsum(found.lengths, dtype=np.int64) * width
    if found.lengths.min() < 0:
        raise FormatError(f"{index} is damaged: a sequence has a negative length; tokenize again")
    if found.starts[0] != 0 or not np.array_equal(found.starts[1:], after[:-1]):
        raise FormatError(f"{index} is damaged: its sequences do not lie one behind the other; tokenize again")
    if after[-1] != ids.bytes:
        raise FormatError(f"{ids.path} has {ids.bytes} bytes, its index says {int(after[-1])}; tokenize again")
    if len(found.ends) and (found.ends[-1] != len(found) or (np.diff(found.ends, prepend=0) < 0).any()):
        raise FormatError(f"{index} is damaged: its documents are out of order; tokenize again")
