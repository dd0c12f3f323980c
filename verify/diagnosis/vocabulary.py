"""Faults of the vocabulary that lose rows: shifted from one row on, or ended too early."""

import torch

from mconv.verify.diagnosis.order import Gather, hashes
from mconv.verify.diagnosis.pair import Hit, TensorPair


def vocabulary(pair: TensorPair) -> Hit | None:
    """Return the fault if rows of the vocabulary are shifted from one row on, or its last rows are lost."""
    if pair.axes.names[0] != "v":
        return None
    first, last = pair.difference.extent["v"]
    one, two = (hashes(t.reshape(len(t), -1)) for t in (pair.x, pair.y))
    return _shift(one, two, first, last) or _end(pair, two, first, last)


def _shift(one: list[int], two: list[int], first: int, last: int) -> Hit | None:
    where = {value: i for i, value in reversed(list(enumerate(two)))}
    probes = [first, (first + last) // 2, last]
    for by in {where[one[row]] - row for row in probes if one[row] in where and where[one[row]] != row}:
        gone, come = first + max(-by, 0), first + max(by, 0)  # of a, of b: where the common rows begin
        run = min(len(one) - gone, len(two) - come)
        if run > abs(by) and one[gone : gone + run] == two[come : come + run]:
            index = torch.arange(len(two))
            stop = min(gone + run, len(two))
            index[gone:stop] = torch.arange(come, come + stop - gone)
            text = f"rows of the vocabulary from {first} on are {abs(by)} {'later' if by > 0 else 'earlier'}"
            return Hit("vocabulary-shift", text, Gather(0, 1, index))
    return None


def _end(pair: TensorPair, two: list[int], first: int, last: int) -> Hit | None:
    """Return the fault if the last rows are zero, or copies of one row: a vocabulary that ended too early."""
    rows = pair.y[first:]
    if last + 1 != len(pair.x) or len(pair.y) != len(pair.x) or 2 * len(rows) > len(two):
        return None
    text = f"the last {len(rows)} rows are" if len(rows) > 1 else "the last row is"
    if not rows.count_nonzero():
        return Hit("vocabulary-end", f"{text} zero", None)
    if len(set(two[first:])) == 1 and two[first] in two[:first]:
        return Hit(
            "vocabulary-end", f"{text} {'copies' if len(rows) > 1 else 'a copy'} of row {two.index(two[first])}", None
        )
    return None
