"""The largest elements of a tensor, exactly and in bounded memory: a radix search over the bits, 16 a pass.

Of equal elements the earlier one counts as the larger, as in a stable sort from the largest down.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mconv.convert.blend.bits import SIGNED, bits
from mconv.convert.blend.slabs import Series, Slabs

DIGIT = 16


@dataclass(slots=True)
class Found:
    """The smallest of the `count` largest elements of a series: its key, and how many equal ones are among those."""

    count: int
    key: int = 0
    above: int = 0
    """Elements that are larger than all that begin like `key`."""
    equal: int = 0
    """Elements that begin like `key`; at the end, that equal it."""

    @property
    def taken(self) -> int:
        """Return the number of the equal elements that are among the largest."""
        return self.count - self.above


@dataclass(frozen=True, slots=True)
class Cut:
    """Which elements are the largest ones: those above a key, and those equal to it that come before an index."""

    key: int
    index: int

    def above(self, found: np.ndarray, start: int) -> np.ndarray:
        """Return which of some elements, the first of which is number `start`, are among the largest, from their keys."""
        above = found > self.key
        if self.index > start:
            before = self.index - start
            above[:before] |= found[:before] == self.key
        return above


def keys(values: Tensor) -> np.ndarray:
    """Return unsigned integers in the order of the floating-point numbers; -0.0 comes before 0.0."""
    found = bits(values.contiguous())
    info = np.iinfo(found.dtype)
    ordered = found ^ ((found >> info.bits - 1) & info.max) ^ info.min
    return ordered.view(f"u{values.element_size()}")


def value(key: int, dtype: torch.dtype) -> float:
    """Return the number that has this key in an element type."""
    top = 1 << 8 * dtype.itemsize - 1
    ordered = key - top
    signed = ordered if ordered >= 0 else ordered ^ (top - 1)
    return float(torch.tensor(signed, dtype=SIGNED[dtype.itemsize]).view(dtype))


def largest(slabs: Slabs, series: Series, counts: Sequence[Sequence[int]], dtype: torch.dtype) -> list[list[Found]]:
    """Return where the largest elements of each series end, for each of its counts (at least 1)."""
    found = [[Found(count) for count in of] for of in counts]
    for shift in range(8 * dtype.itemsize - DIGIT, -1, -DIGIT):
        tables = [{each.key: np.zeros(1 << DIGIT, np.int64) for each in of} for of in found]
        for slab in slabs():
            for values, table in zip(series(slab), tables, strict=True):
                _count(keys(values), table, shift)
        for of, table in zip(found, tables, strict=True):
            for each in of:
                _descend(each, table[each.key])
    return found


def _count(found: np.ndarray, table: dict[int, np.ndarray], shift: int) -> None:
    """Add the elements that begin like each prefix to its histogram of the next digit."""
    for prefix, counts in table.items():
        tops = found >> shift
        digits = tops if not prefix and found.itemsize * 8 == shift + DIGIT else tops[tops >> DIGIT == prefix]
        low = torch.from_numpy((digits & ((1 << DIGIT) - 1)).astype(np.int32))
        counts += torch.bincount(low, minlength=1 << DIGIT).numpy()  # twice as fast as numpy's


def _descend(found: Found, counts: np.ndarray) -> None:
    """Add the digit at which the largest elements end to a key."""
    from_top = np.cumsum(counts[::-1])
    back = int(np.searchsorted(from_top, found.taken))
    digit = (1 << DIGIT) - 1 - back
    found.above += int(from_top[back] - counts[digit])
    found.key, found.equal = found.key << DIGIT | digit, int(counts[digit])


def cuts(
    slabs: Slabs, series: Series, counts: Sequence[Sequence[int]], dtype: torch.dtype, numel: int
) -> list[list[Cut]]:
    """Return the cut below the largest elements of each series, for each of its counts (0 to all)."""
    found = largest(slabs, series, [[max(1, count) for count in of] for of in counts], dtype)
    wanted = [[(one.key, one.taken) for one in of if one.taken < one.equal] for of in found]
    indices = _indices(slabs, series, wanted) if any(wanted) else [{} for _ in wanted]
    return [
        [
            Cut(one.key, at.get((one.key, one.taken), numel)) if count else Cut((1 << 8 * dtype.itemsize) - 1, 0)
            for count, one in zip(of_counts, of, strict=True)
        ]
        for of_counts, of, at in zip(counts, found, indices, strict=True)
    ]


def _indices(
    slabs: Slabs, series: Series, wanted: Sequence[Sequence[tuple[int, int]]]
) -> list[dict[tuple[int, int], int]]:
    """Return the index that follows the n-th element with a key, for each (key, n) of each series."""
    seen = [dict.fromkeys(of, 0) for of in wanted]
    at: list[dict[tuple[int, int], int]] = [{} for _ in wanted]
    for slab in slabs():
        for values, left, done in zip(series(slab), seen, at, strict=True):
            found = keys(values)
            for key, n in left.keys() - done.keys():
                equal = np.flatnonzero(found == key)
                if left[key, n] + len(equal) >= n:
                    done[key, n] = slab.start + int(equal[n - left[key, n] - 1]) + 1
                left[key, n] += len(equal)
        if all(len(done) == len(of) for done, of in zip(at, seen, strict=True)):
            break
    return at
