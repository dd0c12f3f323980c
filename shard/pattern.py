"""Patterns of stored tensors: `"(g s[:q] h) d"` holds the queries of each group, and nothing else of the tensor.

A pattern names the axes of each stored dimension as `axes.py` does, in stored order. Of an axis it may hold a
part (`s[:q]`, `s[-1]`, `p[0]`); a bound may be negative, or an axis, which stands for its size. `h~` is stored pairwise
(0, n/2, 1, n/2 + 1, ...: rotary rows). `+` puts blocks end to end: `"(p[1] f + p[0] f) d"` has up before gate.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

from mconv.errors import LayoutError
from mconv.shard.axes import Axes, Range
from mconv.shard.cut import Block, Order, Piece, region

Sizes = Mapping[str, int]
_TOKEN = re.compile(r"([a-z])(?:\[(-?\w+|-?\w*:-?\w*)\])?(~)?|([()+])|(\S)")


@dataclass(frozen=True, slots=True)
class Term:
    """One axis of a stored dimension, or the part of it that is stored."""

    axis: str
    part: str = ""
    """An index, or `start:stop`; empty: all of the axis."""
    paired: bool = False

    def range(self, sizes: Sizes) -> Range:
        """Return start and stop of the stored part of the axis."""
        first, colon, last = self.part.partition(":")
        start = self._bound(first, sizes) if first else 0
        stop = self._bound(last, sizes) if last else sizes[self.axis] if colon or not first else start + 1
        return start, stop

    def only(self, names: Sequence[str]) -> "Term | None":
        """Return the term itself, or None if its axis is not among the names."""
        return self if self.axis in names else None

    def _bound(self, text: str, sizes: Sizes) -> int:
        if text.isalpha():
            return sizes[text]
        return int(text) + sizes[self.axis] * (int(text) < 0)


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks that lie end to end in a stored dimension: products of axes, outermost first; the last may be blocks."""

    each: tuple[tuple["Term | Blocks", ...], ...]

    def terms(self) -> Iterator[Term]:
        """Yield every axis, in stored order."""
        for block in self.each:
            for one in block:
                yield from one.terms() if isinstance(one, Blocks) else [one]

    def only(self, names: Sequence[str]) -> "Blocks | None":
        """Return the blocks without all other axes; None if nothing is left."""
        kept = (tuple(part for one in block if (part := one.only(names)) is not None) for block in self.each)
        each = tuple(block for block in kept if block)
        return Blocks(each) if each else None


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed pattern: the stored dimensions, outermost first."""

    dims: tuple[Blocks, ...]

    def terms(self) -> Iterator[Term]:
        """Yield every axis of every dimension, in stored order."""
        for dim in self.dims:
            yield from dim.terms()

    def only(self, names: Sequence[str]) -> "Pattern":
        """Return the pattern without all other axes, and without dimensions that have none left (a weight's bias)."""
        return Pattern(tuple(dim for one in self.dims if (dim := one.only(names)) is not None))

    def at(self, index: Mapping[str, int]) -> "Pattern":
        """Return the pattern of one index of some axes, which are not stored then: what one of a tensor's names holds."""
        rest = self.only([term.axis for term in self.terms() if term.axis not in index])
        fixed = tuple(Term(axis, str(i)) for axis, i in index.items())
        first, *others = rest.dims
        return Pattern((Blocks(tuple((*fixed, *block) for block in first.each)), *others))


# ---- reading ---------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=1024)
def parse(text: str) -> Pattern:
    """Read a pattern. Raises ValueError where it is none."""
    tokens = list(_TOKEN.finditer(text))[::-1]
    dims = []
    while tokens:
        dims.append(_blocks(tokens, text) if tokens[-1][0] == "(" else Blocks(((_term(tokens, text),),)))
    return Pattern(tuple(dims))


def _blocks(tokens: list[re.Match[str]], text: str) -> Blocks:
    """Read what stands in brackets; `tokens` are those to come, the next one last."""
    each: list[list[Term | Blocks]] = [[]]
    tokens.pop()
    while tokens and tokens[-1][0] != ")":
        if tokens[-1][0] == "+":
            tokens.pop()
            each.append([])
        else:
            each[-1].append(_blocks(tokens, text) if tokens[-1][0] == "(" else _term(tokens, text))
    if not tokens or not all(each) or any(isinstance(one, Blocks) for block in each for one in block[:-1]):
        raise ValueError(f"not a pattern: {text!r}")
    tokens.pop()
    return Blocks(tuple(map(tuple, each)))


def _term(tokens: list[re.Match[str]], text: str) -> Term:
    axis, part, paired, *_ = tokens.pop().groups()
    if axis is None:
        raise ValueError(f"not a pattern: {text!r}")
    return Term(axis, part or "", bool(paired))


# ---- what is stored --------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Span:
    """A range of an axis that is stored, and the room that it has: more where a vocabulary is padded."""

    axis: str
    start: int
    stop: int
    room: int
    paired: bool = False

    @property
    def n(self) -> int:
        return self.stop - self.start


Mine = Mapping[str, tuple[int, int, int]]
"""Axis -> start, stop and room of the part that a rank has of it."""


def piece(
    axes: Axes, sizes: dict[str, int], pattern: Pattern | None = None, *, cut: str = "", rank: int = 0, of: int = 1,
    padded: int | None = None,
) -> Piece:  # fmt: skip
    """Return what tensor-parallel `rank` of `of` stores of a tensor with these axes. An axis that it lacks cuts nothing.

    `pattern`: how it is stored; None: as it is. `padded`: the size to which `cut` grows before it is cut (vocabulary);
    rows past the true size are padding.
    """
    return _piece(axes, tuple(sizes.items()), pattern or parse(str(axes)), cut, rank, of, padded)


@lru_cache(maxsize=4096)  # every layer's tensors are stored alike
def _piece(
    axes: Axes, items: tuple[tuple[str, int], ...], pattern: Pattern, cut: str, rank: int, of: int, padded: int | None
) -> Piece:
    sizes = dict(items)
    # "(g s h) d", g=2 s=3 h=2, cut by g: rank 1 of 2 stores rows 6:12, which are group 1
    if of > 1 and cut in axes.names and (padded or sizes[cut]) % of:
        return _through_groups(axes, sizes, pattern, cut, rank=rank, of=of)
    mine = {cut: _share(sizes[cut], padded or sizes[cut], rank, of)} if cut in axes.names else {}
    stored = [list(_placed(dim, sizes, mine)) for dim in pattern.dims]
    shape = tuple(dim[-1][0] + prod(run.room for run in dim[-1][1]) for dim in stored)
    blocks = (_block(axes, chosen) for chosen in product(*stored))
    return Piece(shape, tuple(block for block in blocks if block is not None))


def _through_groups(axes: Axes, sizes: dict[str, int], pattern: Pattern, cut: str, *, rank: int, of: int) -> Piece:
    """Return the piece of rows that are cut evenly through the middle of a query group (`cut.SUBDIVIDED`)."""
    # "(g s h) d", g=2 s=4 h=2, 16 rows: rank 1 of 4 -> rows 4:8, which are slots 2:4 of group 0
    if pattern != parse(str(axes)):
        raise LayoutError(f"{sizes[cut]} slices along {cut} cannot be shared by {of} ranks in the order of this dialect")
    shape = list(axes.shape(sizes))
    dimension = next(i for i, group in enumerate(axes.groups) if cut in group)
    shape[dimension] //= of
    offsets = tuple(rank * n if i == dimension else 0 for i, n in enumerate(shape))
    return region(axes, sizes, offsets, tuple(shape))


def _share(size: int, padded: int, rank: int, of: int) -> tuple[int, int, int]:
    """Return start, stop and room of a rank's part of the axis that is cut."""
    room = padded // of
    return min(rank * room, size), min(rank * room + room, size), room


def _placed(dim: Blocks, sizes: Sizes, mine: Mine) -> Iterator[tuple[int, list[_Span]]]:
    """Yield each block of a stored dimension: its offset, and the ranges of axes that it holds."""
    offset = 0
    for runs in _unfolded(dim, sizes, mine):
        yield offset, runs
        offset += prod(run.room for run in runs)


def _unfolded(dim: Blocks, sizes: Sizes, mine: Mine) -> Iterator[list[_Span]]:
    """Yield the blocks of a dimension in order; a nested block comes once for each index of the axes around it."""
    # "(g (s[0] h + s[1] h))", g=2 -> g0 s0 h, g0 s1 h, g1 s0 h, g1 s1 h
    for block in dim.each:
        around = [_run(one, sizes, mine) for one in block if isinstance(one, Term)]
        if isinstance(block[-1], Term):
            yield around
            continue
        for index in product(*(range(run.start, run.stop) for run in around)):
            fixed = [_Span(run.axis, i, i + 1, 1) for run, i in zip(around, index, strict=True)]
            for inner in _unfolded(block[-1], sizes, mine):
                yield fixed + inner


def _run(term: Term, sizes: Sizes, mine: Mine) -> _Span:
    if term.axis in mine:
        return _Span(term.axis, *mine[term.axis], term.paired)
    start, stop = term.range(sizes)
    return _Span(term.axis, start, stop, stop - start, term.paired)


def _block(axes: Axes, chosen: Sequence[tuple[int, list[_Span]]]) -> Block | None:
    """Return one block of each dimension as a box of the logical tensor and its region; None if all of it is padding."""
    runs = [run for _, dim in chosen for run in dim]
    if not all(run.n > 0 for run in runs):
        return None
    held = {run.axis: (run.start, run.stop) for run in runs}
    at = tuple((offset, offset + prod(run.n for run in dim)) for offset, dim in chosen)
    return Block(tuple(held[name] for name in axes.names), at, _order(axes, runs))


def _order(axes: Axes, runs: Sequence[_Span]) -> Order | None:
    """Return how to bring a stored region into the order of the logical tensor; None if it has that order."""
    if not any(run.paired for run in runs) and tuple(run.axis for run in runs) == axes.names:
        return None
    # "(h~)" of 4 channels is stored as 0 2 1 3: reshape to (2, 2) and transpose. "d (s g h)" is permuted to (g, s, h, d).
    shape: list[int] = []
    places: dict[str, list[int]] = {}
    for run in runs:
        if run.paired and run.n % 2:
            raise LayoutError(f"a head of {run.n} channels has no rotary pairs to interleave")
        places[run.axis] = [len(shape) + 1, len(shape)] if run.paired else [len(shape)]
        shape += [run.n // 2, 2] if run.paired else [run.n]
    return Order(tuple(shape), tuple(i for name in axes.names for i in places[name]))
