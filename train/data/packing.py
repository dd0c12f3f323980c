"""Pack samples into rows."""

import bisect
from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int], *, room: int) -> list[list[int]]:
    """Return rows of at most `room` tokens: the numbers of the samples in each, every sample in one.

    Longest first, each into the fullest row that it fits into: a few per cent of the room stays empty, and what is
    packed depends on the lengths alone. Samples longer than `room` must have been cut before.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, row) of the rows that have some, in order
    for number in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[number])
        at = bisect.bisect_left(free, (length, -1))
        left, row = free.pop(at) if at < len(free) else (room, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(number)
        if left > length:
            bisect.insort(free, (left - length, row))
    return rows
