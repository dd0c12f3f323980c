"""One logical tensor <-> the pieces of it that are stored: parts on a fused axis, shares of tensor-parallel ranks.

A tensor-parallel rule is the *name of the axis that is cut*. QKV, gated MLP and biases need no rule of their own, and
merging is the same pieces read the other way.
"""

from dataclasses import dataclass
from itertools import product
from math import prod

from mconv.shard.axes import Axes, Box, Range, lengths, runs, whole

SUBDIVIDED = {"g": "q"}
"""megatron-core lets more ranks than query groups share the groups, if each rank gets whole query heads (its
`attention.py` gathers the fused rows again before use): rows are then cut evenly, through the middle of a group."""


@dataclass(frozen=True, slots=True)
class Order:
    """The order of a stored region: reshaped to `shape` and permuted by `axes`, it is the box in its own order."""

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
    """Return the piece that a rectangle of the *stored* whole tensor holds (a chunk of a distributed checkpoint)."""
    # "(g s h) d", g=2 s=3 h=2, rows 4:10 -> slot 2 of group 0 in rows 0:2 of the piece, slots 0:2 of group 1 in 2:6
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


def repeat_last(piece: Piece, axes: Axes, sizes: dict[str, int]) -> Piece:
    """Return the piece with every row of padding a copy of the last true row, as some Megatrons pad a vocabulary."""
    size = sizes[axes.names[0]]
    held = max((block.at[0][1] for block in piece.blocks), default=0)
    last = ((size - 1, size), *whole(axes.dims(sizes))[1:])
    rest = whole(piece.shape)[1:]
    copies = tuple(Block(last, ((row, row + 1), *rest)) for row in range(held, piece.shape[0]))
    return Piece(piece.shape, (*piece.blocks, *copies))


def can_share(axes: Axes, sizes: dict[str, int], cut: str, of: int) -> bool:
    """Return whether `of` ranks can store equal shares that megatron-core can compute with."""
    if cut not in axes.names or sizes[cut] % of == 0:
        return True
    member = SUBDIVIDED.get(cut)
    if member is None or not axes.outermost(cut) or of % sizes[cut]:
        return False
    dimension = next(group for group in axes.groups if group[0] == cut)
    rows = prod(sizes[name] for name in dimension)
    return sizes[member] % (of // sizes[cut]) == 0 and rows % of == 0
