"""A `.bin/.idx` pair as it lies on disk: any program's, checked before it is believed."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mconv.errors import FormatError

MAGIC = b"MMIDIDX\x00\x00"
OLD_MAGIC = b"TNTIDX\x00\x00"
HEADER = 34
"""Bytes of magic, version, dtype code and the two counts."""
DTYPES: dict[int, type[np.generic]] = {
    1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16,
}  # fmt: skip
"""Integer types by their code in the file; 6 and 7 are floats, of which no program makes tokens."""
CHUNK = 1 << 26
"""Tokens looked at together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """Sequences of token ids, mapped into memory."""

    prefix: Path
    lengths: npt.NDArray[np.int32]
    """Tokens of each sequence."""
    starts: npt.NDArray[np.int64]
    """First token of each sequence in `tokens`."""
    ends: npt.NDArray[np.int64]
    """Sequences before the end of each document; empty where the writer marked no documents, as the ancestor did."""
    tokens: npt.NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> npt.NDArray[np.integer]:
        start = self.starts[number]
        return self.tokens[start : start + self.lengths[number]]

    def highest(self) -> int:
        """The largest id."""
        return max((int(part.max()) for part in self.parts()), default=-1)

    def lowest(self) -> int:
        """The smallest id."""
        return min((int(part.min()) for part in self.parts()), default=0)

    def parts(self) -> Iterator[npt.NDArray[np.integer]]:
        """All tokens, in pieces that fit into memory."""
        return (self.tokens[start : start + CHUNK] for start in range(0, len(self.tokens), CHUNK))


def open_index(prefix: Path) -> Indexed:
    """Open PREFIX.bin and PREFIX.idx. Raises FormatError, with the file's name, on what is missing or damaged."""
    data, index = (prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx"))
    for path in (data, index):
        if not path.is_file():
            raise FormatError(f"{path}: no such file; make it with: mconv data tokenize ... --prefix {prefix}")
    dtype, sequences, documents = _header(index)
    sizes = [4 * sequences, 8 * sequences, 8 * documents]
    if not sequences or index.stat().st_size != HEADER + sum(sizes):
        raise FormatError(
            f"{index} is empty or damaged: {index.stat().st_size} bytes, its header says {HEADER + sum(sizes)}"
        )
    body = np.memmap(index, dtype=np.uint8, mode="r", offset=HEADER)
    lengths, pointers, ends = np.split(body, np.cumsum(sizes)[:2])
    width = np.dtype(dtype).itemsize
    found = Indexed(
        prefix=prefix, lengths=lengths.view(np.int32), starts=pointers.view(np.int64) // width,
        ends=ends.view(np.int64)[1:], tokens=_tokens(data, dtype),
    )  # fmt: skip
    _check(found, index, data)
    return found


def _header(index: Path) -> tuple[type[np.generic], int, int]:
    """(dtype, sequences, entries of the list of documents)."""
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


def _tokens(data: Path, dtype: type[np.generic]) -> npt.NDArray[np.integer]:
    if data.stat().st_size % np.dtype(dtype).itemsize:
        raise FormatError(f"{data}: {data.stat().st_size} bytes are no whole number of {np.dtype(dtype)}")
    return np.memmap(data, dtype=dtype, mode="r") if data.stat().st_size else np.zeros(0, dtype)


def _check(found: Indexed, index: Path, data: Path) -> None:
    """The sequences must lie one behind the other and fill the file: what reads them does not look again."""
    total = np.cumsum(found.lengths, dtype=np.int64)
    if found.lengths.min() < 0:
        raise FormatError(f"{index} is damaged: a sequence has a negative length; tokenize again")
    if not np.array_equal(found.starts, np.concatenate([[0], total[:-1]])):
        raise FormatError(f"{index} is damaged: its sequences do not lie one behind the other; tokenize again")
    if total[-1] != len(found.tokens):
        width = found.tokens.itemsize
        raise FormatError(
            f"{data} has {len(found.tokens) * width} bytes, its index says {int(total[-1]) * width}; tokenize again"
        )
    if len(found.ends) and (found.ends[-1] != len(found) or (np.diff(found.ends, prepend=0) < 0).any()):
        raise FormatError(f"{index} is damaged: its documents are out of order; tokenize again")
