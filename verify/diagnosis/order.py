"""Faults that only reorder the elements of a tensor, recognised exactly by trying.

A candidate is an index of slices: b's slices in that order are a's. The known orders follow from the axes; others are
found by matching hashes of slices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
import xxhash

from mconv.convert.formats.mapped import bytes_of
from mconv.shard.axes import Axes
from mconv.verify.diagnosis.pair import Hit, Mend, TensorPair

RANKS = (2, 4, 8, 16)
"""Numbers of ranks whose shares are tried."""
PROBE = 16
"""Columns that must agree before a whole tensor is reordered."""
AXIS_NAMES = {
    "g": "query groups", "s": "slots (queries, key, value) of each group", "q": "query heads of each group",
    "h": "channels of each head", "p": "halves", "f": "channels of the MLP", "v": "rows of the vocabulary",
    "d": "hidden channels",
}  # fmt: skip
"""Names of the slices along an axis."""
AXIS_FAULTS = {"g": "query-group-order", "s": "slot-order", "p": "gate-up-swapped", "v": "vocabulary-order"}
"""Faults that reorder one axis; any other is `shuffled`."""
Rows = Iterator[tuple[str, str, torch.Tensor]]
"""Name of a fault, its description, and the index of rows that undoes it."""


@dataclass(frozen=True, slots=True, eq=False)
class Gather:
    """The slices along axes start..stop (fused into one), in the order of an index."""

    start: int
    stop: int
    index: torch.Tensor

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor.flatten(self.start, self.stop - 1)
        return flat.index_select(self.start, self.index).reshape(tensor.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Within:
    """A repair of a range of one axis only: a rank's share."""

    axis: int
    start: int
    stop: int
    inner: Mend

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        out = tensor.clone()
        part = out.narrow(self.axis, self.start, self.stop - self.start)
        part.copy_(self.inner(part.clone()))
        return out


def known_order(pair: TensorPair) -> Hit | None:
    """Return the fault if b has an order of rows that programs are known to mix up, in all of it or in a rank's share."""
    if not pair.permuted:
        return None
    return _known(pair.x, pair.y, pair.axes) or _in_share(pair)


def _in_share(pair: TensorPair) -> Hit | None:
    """Return the fault if only a range of the axis that ranks cut has such an order."""
    if pair.cut not in pair.axes.groups[0]:
        return None
    axis = pair.axes.names.index(pair.cut)
    first, last = pair.difference.extent[pair.cut]
    if last - first + 1 == pair.x.shape[axis]:
        return None
    x, y = (t.narrow(axis, first, last + 1 - first).contiguous() for t in (pair.x, pair.y))
    hit = _known(x, y, pair.axes)
    if hit is None or hit.mend is None:
        return None
    return Hit(hit.name, f"{hit.what}, in {pair.cut} {first} to {last}", Within(axis, first, last + 1, hit.mend))


def _known(x: torch.Tensor, y: torch.Tensor, axes: Axes) -> Hit | None:
    group = axes.groups[0]
    sizes = tuple(x.shape[: len(group)])
    one, two = x.view(prod(sizes), -1), y.view(prod(sizes), -1)
    short = one[:, :PROBE].contiguous(), two[:, :PROBE].contiguous()
    for name, what, index in _candidates(group, sizes, x, y):
        if torch.equal(short[0], short[1][index]) and torch.equal(one, two[index]):
            return Hit(name, what, Gather(0, len(group), index))
    return None


def _candidates(group: tuple[str, ...], sizes: tuple[int, ...], x: torch.Tensor, y: torch.Tensor) -> Rows:
    rows = torch.arange(prod(sizes)).view(sizes)
    if group == ("p", "f"):
        yield from _halves(rows)
    if group == ("g", "s", "h"):
        yield from _rotary(rows)
        yield from _slots(rows)
        yield from _groups(rows, x, y)


def _halves(rows: torch.Tensor) -> Rows:
    """Yield the orders of a gated MLP: the two halves exchanged, or the halves of each rank."""
    yield "gate-up-swapped", "gate and up are swapped", rows.flip(0).flatten()
    halves, width = rows.shape
    for ranks in (n for n in RANKS if width % n == 0 and width > n):
        joined = torch.arange(rows.numel()).view(ranks, halves, width // ranks).transpose(0, 1).flatten()
        yield "gate-up-by-rank", f"gate and up of each of {ranks} ranks lie together, not all gates first", joined
        what = f"gate and up were cut into {ranks} shares as if each share had its own gate and up"
        yield "gate-up-by-rank", what, joined.argsort()


def _rotary(rows: torch.Tensor) -> Rows:
    """Yield the orders of channels of query and key heads: interleaved pairs, or two halves."""
    width, queries = rows.shape[2], rows.shape[1] - 2
    if width % 2 or width < 4:
        return
    pairs = torch.arange(width).view(width // 2, 2).T.flatten()
    for who, slots in (("q and k", slice(0, queries + 1)), ("q", slice(0, queries)), ("k", slice(queries, queries + 1))):
        for relation, order in (
            ("interleaved where a's are half-split", pairs),
            ("half-split where a's are interleaved (permuted once too often)", pairs.argsort()),
        ):
            index = rows.clone()
            index[:, slots] = rows[:, slots][..., order]
            yield "rotary-order", f"the rotary channels of {who} are {relation}", index.flatten()


def _slots(rows: torch.Tensor) -> Rows:
    """Yield the orders of queries, key and value of a group: k and v exchanged, those of other programs or versions."""
    groups, slots, width = rows.shape
    swapped = torch.arange(slots)
    swapped[-2:] = torch.tensor([slots - 1, slots - 2])
    yield "slot-order", "k and v are exchanged", rows[:, swapped].flatten()
    queries = groups * (slots - 2) * width
    parts = [torch.arange(queries).view(groups, slots - 2, width)]
    parts += [torch.arange(n, n + groups * width).view(groups, 1, width) for n in (queries, queries + groups * width)]
    older = {
        "all q, then all k, then all v": torch.cat(parts, 1),
        "slot by slot, not group by group (Megatron-LM's checkpoint version 0)":
            torch.arange(rows.numel()).view(slots, groups, width).permute(1, 0, 2),
        "channel by channel within a group (Megatron-LM's checkpoint version 1)":
            torch.arange(rows.numel()).view(groups, width, slots).permute(0, 2, 1),
    }  # fmt: skip
    for what, index in older.items():
        yield "slot-order", f"rows lie {what}", index.flatten()
        yield "slot-order", f"rows were taken to lie {what}, and do not", index.flatten().argsort()


def _groups(rows: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> Rows:
    """Yield the order of query groups: of all of them, or of their queries, keys or values only."""
    groups, slots, _ = rows.shape
    kinds = {"q": slice(0, slots - 2), "k": slice(slots - 2, slots - 1), "v": slice(slots - 1, slots)}
    found = {}
    for kind, where in kinds.items():
        order = matched(x[:, where].reshape(groups, -1), y[:, where].reshape(groups, -1))
        if order is None:
            return
        found[kind] = order
    index = rows.clone()
    moved: dict[str, list[str]] = {}
    for kind, order in found.items():
        index[:, kinds[kind]] = rows[:, kinds[kind]][order]
        if not torch.equal(order, torch.arange(groups)):
            moved.setdefault(order_in_words(order), []).append(kind)
    orders = [f"query groups{'' if len(who) == 3 else ' of ' + ' and '.join(who)}: {what}" for what, who in moved.items()]
    yield "query-group-order", "; ".join(orders), index.flatten()


# ---- any order -------------------------------------------------------------------------------------------------------
def shuffled(pair: TensorPair) -> Hit | None:
    """Return the fault if b has a's slices along one axis, or a's rows of a stored matrix, in another order."""
    if not pair.permuted:
        return None
    names = pair.axes.names
    single = [(i, i + 1, name) for i, name in enumerate(names) if pair.x.shape[i] > 1]
    fused, at = [], 0
    for group in pair.axes.groups:
        fused += [(at, at + len(group), f"({' '.join(group)})")] if len(group) > 1 else []
        at += len(group)
    for start, stop, name in single + fused:
        index = matched(_slices(pair.x, start, stop), _slices(pair.y, start, stop))
        if index is not None:
            return _named_order(pair, name, index, Gather(start, stop, index))
    return None


def _named_order(pair: TensorPair, axis: str, index: torch.Tensor, mend: Mend) -> Hit:
    blocks = _blocks(index)
    if axis == pair.cut and blocks is not None and axis != "g":
        return Hit("ranks-exchanged", f"of the shares of {len(blocks)} ranks, {order_in_words(blocks)}", mend)
    rolled = axis == "v" and bool((index == index.roll(1).add(1).remainder(len(index))).all())
    name = "vocabulary-shift" if rolled else AXIS_FAULTS.get(axis, "shuffled")
    what = AXIS_NAMES.get(axis, f"rows {axis}")
    return Hit(name, f"{what} in another order: {order_in_words(index)}", mend)


def order_in_words(index: torch.Tensor) -> str:
    """Return a permutation in words."""
    place = torch.arange(len(index))
    moved = (index != place).nonzero().flatten().tolist()
    if len(moved) == 2:
        return f"{moved[0]} and {moved[1]} are exchanged"
    by = int(index[0])
    if torch.equal(index, place.add(by).remainder(len(index))):
        return f"all are {by} later" if 2 * by <= len(index) else f"all are {len(index) - by} earlier"
    return f"{len(moved)} of {len(index)} are out of place"


def _blocks(index: torch.Tensor) -> torch.Tensor | None:
    """Return the order of equal blocks, for the fewest ranks that explain an index; else None."""
    for ranks in (n for n in RANKS if len(index) % n == 0 and len(index) > n):
        width = len(index) // ranks
        table = index.view(ranks, width)
        if not (table[:, 0] % width).any() and torch.equal(table, table[:, :1] + torch.arange(width)):
            return table[:, 0] // width
    return None


def _slices(tensor: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Return one row for each slice along axes start..stop."""
    flat = tensor.flatten(start, stop - 1)
    return flat.movedim(start, 0).reshape(flat.shape[start], -1)


def matched(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor | None:
    """Return the index with which y's rows are x's, rows in place staying there; None if they are not the same rows."""
    one, two = hashes(x), hashes(y)
    if sorted(one) != sorted(two):
        return None
    free: dict[int, list[int]] = {}
    for i in reversed(range(len(two))):
        if one[i] != two[i]:
            free.setdefault(two[i], []).append(i)
    index = torch.tensor([i if one[i] == two[i] else free[one[i]].pop() for i in range(len(one))])
    return index if torch.equal(x, y[index]) else None


def hashes(rows: torch.Tensor) -> list[int]:
    """Return a hash of each row's bytes."""
    held = bytes_of(rows)
    width = len(held) // len(rows)
    return [xxhash.xxh3_64_intdigest(held[i : i + width]) for i in range(0, len(held), width)]
