"""Named axes: `"(g s h) d"` says that the rows of a stored matrix are groups x slots x head width, its columns hidden.

A logical tensor lives in elementary axes (g, s, h, d). A *box* is one range per elementary axis. What lies on disk is a
fused view of a few boxes, so cutting, merging and reading a slice are all intersections of boxes.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import prod

Range = tuple[int, int]
"""Start and stop, stop excluded."""
Box = tuple[Range, ...]
"""One range per elementary axis, in the order of the pattern."""


@dataclass(frozen=True, slots=True)
class Axes:
    """A parsed pattern: for each stored dimension, the elementary axes that are fused in it, outermost first."""

    groups: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for group in self.groups for name in group)

    def __str__(self) -> str:
        return " ".join(group[0] if len(group) == 1 else f"({' '.join(group)})" for group in self.groups)

    def outermost(self, axis: str) -> bool:
        """Return whether cutting `axis` cuts its stored dimension into contiguous runs."""
        return any(group[0] == axis for group in self.groups)

    def without_input(self) -> "Axes":
        """Return the axes of the bias that goes with this weight: the weight's own without the last, its input."""
        return Axes(self.groups[:-1] or self.groups)

    def only(self, names: tuple[str, ...]) -> "Axes":
        """Return the axes with these names, without all others."""
        groups = (tuple(name for name in group if name in names) for group in self.groups)
        return Axes(tuple(group for group in groups if group))

    def dims(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """Return the elementary sizes, in order."""
        return tuple(sizes[name] for name in self.names)

    def shape(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """Return the stored sizes: the product of each fused group."""
        return tuple(prod(sizes[name] for name in group) for group in self.groups)


@lru_cache(maxsize=256)
def parse(pattern: str) -> Axes:
    """Read `"(g s h) d"`. Axis names are single lower-case letters, each used once, brackets do not nest."""
    tokens = re.findall(r"\(([a-z ]+)\)|([a-z])", pattern)
    groups = tuple(tuple((fused or single).split()) for fused, single in tokens)
    axes = Axes(groups)
    if not groups or str(axes) != pattern or len(set(axes.names)) != len(axes.names):
        raise ValueError(f"not an axes pattern: {pattern!r}")
    return axes


def whole(dims: tuple[int, ...]) -> Box:
    """Return the box of a whole tensor of these sizes."""
    return tuple((0, n) for n in dims)


def lengths(box: Box) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in box)


def volume(box: Box) -> int:
    return prod(lengths(box))


def intersect(a: Box, b: Box) -> Box | None:
    """Return the box that both boxes hold, or None if they share nothing."""
    both = tuple((max(s, t), min(e, f)) for (s, e), (t, f) in zip(a, b, strict=True))
    return both if all(start < stop for start, stop in both) else None


def overlap(boxes: Sequence[Box]) -> tuple[int, int] | None:
    """Return the numbers of two boxes that overlap, of boxes that are sorted; None if all are apart."""
    pairs = pairwise(range(len(boxes))) if _regular(boxes) else _near(boxes)
    return next(((i, j) for i, j in pairs if intersect(boxes[i], boxes[j]) is not None), None)


def _regular(boxes: Sequence[Box]) -> bool:
    """Return whether boxes are cells of one grid: of those, two that overlap are the same, and neighbours if sorted."""
    return len({lengths(box) for box in boxes}) == 1 and all(
        start % max(stop - start, 1) == 0 for box in boxes for start, stop in box
    )


def _near(boxes: Sequence[Box]) -> Iterator[tuple[int, int]]:
    """Yield pairs of which the second starts before the first stops, on the first axis."""
    for i, box in enumerate(boxes):
        for j in range(i + 1, len(boxes)):
            if box and boxes[j][0][0] >= box[0][1]:
                break
            yield i, j


def within(inner: Box, outer: Box) -> tuple[slice, ...]:
    """Return the index of `inner` in a view of `outer`."""
    return tuple(slice(s - t, e - t) for (s, e), (t, _) in zip(inner, outer, strict=True))


def runs(dims: tuple[int, ...], start: int, stop: int) -> list[tuple[int, Box]]:
    """Return the boxes that make up [start, stop) of the fused axis over `dims`, each with its offset from `start`.

    An interval of a fused axis is a mixed-radix number range, so at most 2 * len(dims) - 1 boxes are needed. What lies
    past the end of the fused axis (vocabulary padding) belongs to no box.
    """
    # dims (4, 3): rows (0,0) (0,1) (0,2) (1,0) ...; [2, 11) is the end of row 0, rows 1 and 2, the beginning of row 3:
    # [(0, (0:1, 2:3)), (1, (1:3, 0:3)), (7, (3:4, 0:2))]
    stop = min(stop, prod(dims))
    if start >= stop:
        return []
    inner = prod(dims[1:])
    first, head = divmod(start, inner)
    last, tail = divmod(stop, inner)
    if head == 0 and tail == 0:
        return [(0, ((first, last), *whole(dims[1:])))]
    if first == last:
        return [(at, ((first, first + 1), *box)) for at, box in runs(dims[1:], head, tail)]
    found = []
    if head:
        found += [(at, ((first, first + 1), *box)) for at, box in runs(dims[1:], head, inner)]
    middle = first + (head > 0)
    if middle < last:
        found.append((middle * inner - start, ((middle, last), *whole(dims[1:]))))
    if tail:
        found += [(last * inner - start + at, ((last, last + 1), *box)) for at, box in runs(dims[1:], 0, tail)]
    return found
