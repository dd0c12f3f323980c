"""Sort numbers, and group the documents that have the same one."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mconv.train.data.dedup.sign import DIGEST, NONE
from mconv.train.data.dedup.work import Ids, Signatures

SORTED = 1 << 23
"""Documents that are sorted together: the others wait on the disk."""
SORTING = 48
"""Bytes of memory for each of them."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """Groups of documents, one behind the other; in each they lie in their order."""

    members: Ids
    starts: Ids
    """Where each group begins in `members`, and their number."""

    def parts(self, together: int = SORTED >> 4) -> Iterator["Buckets"]:
        """Yield the groups with about so many members at a time; one that is larger stays whole."""
        cuts = np.searchsorted(self.starts, np.arange(0, len(self.members) + together, together))
        for first, last in pairwise(np.unique(np.minimum(cuts, len(self.starts) - 1)).tolist()):
            starts = self.starts[first : last + 1]
            yield Buckets(self.members[starts[0] : starts[-1]], starts - starts[0])

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield where each group begins and ends in `members`."""
        return pairwise(self.starts.tolist())

    def save(self, path: Path) -> None:
        """Write them to two files."""
        np.save(path.with_suffix(".members.npy"), self.members)
        np.save(path.with_suffix(".starts.npy"), self.starts)

    @classmethod
    def load(cls, path: Path) -> "Buckets":
        """Return the groups of two files, mapped from the disk."""
        return cls(*(np.load(path.with_suffix(f".{name}.npy"), mmap_mode="r") for name in ("members", "starts")))


def grouped(members: Ids, *keys: npt.NDArray[np.uint64]) -> Buckets:
    """Return the groups of at least two members of which all keys are equal."""
    order = np.lexsort((members, *keys))
    members, keys = members[order], tuple(key[order] for key in keys)
    equal = np.ones(max(0, len(members) - 1), bool)
    for key in keys:
        equal &= key[1:] == key[:-1]
    first = np.concatenate(([True], ~equal))[: len(members)]
    number = np.cumsum(first) - 1
    sizes = np.bincount(number)
    kept = sizes[number] > 1
    return Buckets(members[kept], np.cumsum([0, *sizes[sizes > 1]], dtype=np.int64))


def buckets(signatures: Signatures, column: int, without: Ids, *, together: int = SORTED) -> Buckets:
    """Return the groups of documents with equal numbers in a column, sorting at most about `together` at a time.

    `without`: sorted documents that take no part. NONE is no number.
    """
    parts = -(-len(signatures) // together)
    found = [_part(signatures, column, without, part, parts) for part in range(parts)]
    shifts = np.cumsum([0, *(len(one.members) for one in found)])
    starts = [one.starts[:-1] + shift for one, shift in zip(found, shifts, strict=False)]
    members = [one.members for one in found]
    return Buckets(np.concatenate([*members, np.empty(0, np.int64)]), np.concatenate([*starts, shifts[-1:]]))


def _part(signatures: Signatures, column: int, without: Ids, part: int, parts: int) -> Buckets:
    """Return the groups of the numbers of which the remainder is `part`."""
    keys, ids = [], []
    for start, numbers in signatures.column(column):
        chosen = np.flatnonzero((numbers % np.uint64(parts) == part) & (numbers != NONE))
        keys.append(numbers[chosen])
        ids.append(chosen + start)
    members, key = np.concatenate(ids), np.concatenate(keys)
    left = ~np.isin(members, without, assume_unique=True)
    return grouped(members[left], key[left])


def exact(signatures: Signatures) -> Buckets:
    """Return the groups of documents with the same text."""
    first, second = range(DIGEST.start, DIGEST.stop)
    likely = buckets(signatures, first, np.empty(0, np.int64)).members
    good = likely[signatures.lines(likely) > 0]
    return grouped(good, *(signatures.values(column, good) for column in (first, second)))
