"""One logical tensor <-> the pieces of it that are stored: parts on a fused axis, shares of tensor-parallel ranks.

A tensor-parallel rule is the *name of the axis that is cut*. QKV, gated MLP and biases need no rule of their own, and
merging is the same pieces read the other way.
"""

from dataclasses import dataclass
from itertools import product
from math import prod

from mconv.errors import LayoutError
from mconv.shard.axes import Axes, Box, Range, lengths, runs, whole

SUBDIVIDED = {"g": "q"}
"""megatron-core lets more ranks than query groups share the groups, if each rank gets whole query heads (its
`attention.py` gathers the fused rows again before use): rows are then cut evenly, through the middle of a group."""


@dataclass(frozen=True, slots=True)
class Order:
    """How a stored region is ordered: reshaped to `shape` and permuted by `axes`, it is the box in its own order."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A box of the logical tensor, and the region of the stored tensor (one range per dimension) that holds it.

    Where `order` is given, the region holds the box's rows in another order (a dialect's rotary layout).
    """

    box: Box
    at: tuple[Range, ...]
    order: Order | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A stored tensor: its shape, and the blocks of the logical tensor in it. The rest of it is zero padding."""

    shape: tuple[int, ...]
    blocks: tuple[Block, ...]


def region(axes: Axes, sizes: dict[str, int], offsets: tuple[int, ...], shape: tuple[int, ...]) -> Piece:
    """The piece that a rectangle of the *stored* whole tensor holds (a chunk of a distributed checkpoint)."""
    per_dimension = [
        runs(tuple(sizes[name] for name in group), offset, offset + length)
        for group, offset, length in zip(axes.groups, offsets, shape, strict=True)
    ]
    blocks = []
    for combination in product(*per_dimension):
        box = tuple(r for _, ranges in combination for r in ranges)
        at = tuple((start, start + prod(lengths(ranges))) for start, ranges in combination)
        blocks.append(Block(box, at))
    return Piece(shape, tuple(blocks))


def entire(axes: Axes, sizes: dict[str, int]) -> Piece:
    """The whole logical tensor in one stored tensor."""
    shape = axes.shape(sizes)
    return region(axes, sizes, (0,) * len(shape), shape)


def permuted(axes: Axes, stored: Axes, sizes: dict[str, int]) -> Piece:
    """The whole logical tensor in one stored tensor whose dimensions are `stored`: the same axes in another order."""
    shape, box = stored.shape(sizes), whole(axes.dims(sizes))
    order = Order(stored.dims(sizes), tuple(stored.names.index(name) for name in axes.names))
    return Piece(shape, (Block(box, whole(shape), order),))


def part(axes: Axes, sizes: dict[str, int], axis: str, start: int, stop: int) -> Piece:
    """The stored tensor that holds only [start, stop) of `axis`, wherever in a fused dimension that axis is."""
    box = tuple((start, stop) if name == axis else r for name, r in zip(axes.names, whole(axes.dims(sizes)), strict=True))
    shape = axes.shape({**sizes, axis: stop - start})
    return Piece(shape, (Block(box, whole(shape)),))


def share(axes: Axes, sizes: dict[str, int], cut: str, *, rank: int, of: int, padded: int | None = None) -> Piece:
    """What tensor-parallel `rank` of `of` stores. An axis that the tensor lacks cuts nothing: it is replicated.

    `padded` is the size to which `cut` grows before it is cut (vocabulary); rows past the true size are padding.
    """
    if cut not in axes.names:
        return entire(axes, sizes)
    if not axes.outermost(cut):
        width = sizes[cut] // of
        return part(axes, sizes, cut, rank * width, (rank + 1) * width)
    shape = list(axes.shape({**sizes, cut: padded or sizes[cut]}))
    dimension = next(i for i, group in enumerate(axes.groups) if group[0] == cut)
    shape[dimension] //= of
    offsets = tuple(rank * n if i == dimension else 0 for i, n in enumerate(shape))
    return region(axes, sizes, offsets, tuple(shape))


def repeat_last(piece: Piece, axes: Axes, sizes: dict[str, int]) -> Piece:
    """The piece with every row of padding a copy of the last true row, as some Megatrons pad a vocabulary."""
    size = sizes[axes.names[0]]
    held = max((block.at[0][1] for block in piece.blocks), default=0)
    last = ((size - 1, size), *whole(axes.dims(sizes))[1:])
    rest = whole(piece.shape)[1:]
    copies = tuple(Block(last, ((row, row + 1), *rest)) for row in range(held, piece.shape[0]))
    return Piece(piece.shape, (*piece.blocks, *copies))


def can_share(axes: Axes, sizes: dict[str, int], cut: str, of: int) -> bool:
    """Whether `of` ranks can store equal shares that megatron-core can compute with."""
    if cut not in axes.names or sizes[cut] % of == 0:
        return True
    member = SUBDIVIDED.get(cut)
    if member is None or not axes.outermost(cut) or of % sizes[cut]:
        return False
    dimension = next(group for group in axes.groups if group[0] == cut)
    rows = prod(sizes[name] for name in dimension)
    return sizes[member] % (of // sizes[cut]) == 0 and rows % of == 0


def interleaved(block: Block, axis: int) -> Block:
    """The same block where elementary axis number `axis` is stored pairwise: 0, n/2, 1, n/2 + 1, ... (rotary rows)."""
    dims = lengths(block.box)
    if dims[axis] % 2:
        raise LayoutError(f"a head of {dims[axis]} channels has no rotary pairs to interleave")
    shape = (*dims[:axis], dims[axis] // 2, 2, *dims[axis + 1 :])
    axes = (*range(axis), axis + 1, axis, *range(axis + 2, len(shape)))
    return Block(block.box, block.at, Order(shape, axes))
