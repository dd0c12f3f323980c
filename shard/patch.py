"""A block of a stored tensor as offset and strides: where in a file each element of a box lies.

Reading a slab and writing one are the same arithmetic, whatever axes are fused, cut or stored in another order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

from mconv.shard.axes import Box, lengths
from mconv.shard.cut import Block

Dims = tuple[tuple[int, int], ...]
"""Size and stride (in elements) of each dimension, outermost first; dimensions of size 1 are left out."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A box of a logical tensor within one stored tensor."""

    box: Box
    offset: int
    """Elements from the stored tensor's start to the box's first element."""
    axes: tuple[Dims, ...]
    """Stored dimensions of each elementary axis: one, or several if the block has an order."""

    @property
    def split(self) -> int:
        """Return the first elementary axis that is stored as several dimensions, or the number of axes if none is."""
        return next((i for i, dims in enumerate(self.axes) if len(dims) > 1), len(self.axes))

    def widened(self, box: Box) -> Box:
        """Return the box with all of each axis that is stored as several dimensions: such an axis cannot be cut."""
        return tuple(r if len(d) < 2 else w for r, w, d in zip(box, self.box, self.axes, strict=True))

    def cut(self, box: Box) -> tuple[int, Dims]:
        """Return offset and dimensions of a part of the box, in the order of its axes. It must not cut a split axis."""
        offset, dims = self.offset, []
        for (start, stop), (first, _), stored in zip(box, self.box, self.axes, strict=True):
            if len(stored) == 1:
                offset += (start - first) * stored[0][1]
                dims.append((stop - start, stored[0][1]))
            else:
                dims += stored
        return offset, tuple((n, step) for n, step in dims if n != 1)


@lru_cache(maxsize=4096)
def patch_of(shape: tuple[int, ...], block: Block) -> Patch:
    """Return where a block lies in a contiguous stored tensor of this shape."""
    shape = shape[-len(block.at) :]
    steps = [prod(shape[i + 1 :]) for i in range(len(shape))]
    offset = sum(start * step for (start, _), step in zip(block.at, steps, strict=True))
    sizes = lengths(block.box)
    fine: list[tuple[int, int]] = list(zip(lengths(block.at), steps, strict=True))
    if block.order is not None:
        stored = _strides(fine, block.order.shape)
        fine = [(block.order.shape[i], stored[i]) for i in block.order.axes]
        return Patch(block.box, offset, _grouped(fine, sizes))
    return Patch(block.box, offset, _grouped(list(zip(sizes, _strides(fine, sizes), strict=True)), sizes))


def _strides(dims: Sequence[tuple[int, int]], sizes: Sequence[int]) -> list[int]:
    """Return the strides after the dimensions are split into `sizes`, as a view would have them."""
    # 12 rows, 4 elements apart, as (2, 3, 2) -> 24, 8, 4
    rest, left, step, out = list(dims), 1, 0, []
    for size in reversed(sizes):
        while left == 1 and size != 1:
            left, step = rest.pop()
        if left % size:
            raise ValueError(f"{dims} cannot be split into {sizes}")
        out.append(step)
        step, left = step * size, left // size
    return out[::-1]


def _grouped(fine: Sequence[tuple[int, int]], sizes: Sequence[int]) -> tuple[Dims, ...]:
    """Return the dimensions that make up each of the axes with these sizes."""
    # (size, stride) (3, 2) (2, 1) (4, 6) as axes of sizes 1, 3, 2, 4 -> (), ((3, 2),), ((2, 1),), ((4, 6),)
    rest, out = [d for d in fine if d[0] != 1][::-1], []
    for size in sizes:
        dims: list[tuple[int, int]] = []
        while prod(n for n, _ in dims) < size:
            dims.append(rest.pop())
        if prod(n for n, _ in dims) != size:
            raise ValueError(f"{fine} cannot be grouped into {sizes}")
        out.append(tuple(dims))
    return tuple(out)


def by_stride(dims: Dims) -> list[int]:
    """Return the order in which the dimensions lie in the file, outermost first."""
    return sorted(range(len(dims)), key=lambda i: -dims[i][1])


def contiguous_runs(dims: Dims) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield (elements from the start, index of the outer dimensions) of each contiguous run."""
    # (2, 6) (3, 1): two rows of three, six apart -> (0, (0,)), (6, (1,))
    inner, expected = len(dims), 1
    while inner and dims[inner - 1][1] == expected:
        inner -= 1
        expected *= dims[inner][0]
    for index in product(*(range(n) for n, _ in dims[:inner])):
        yield sum(i * step for i, (_, step) in zip(index, dims, strict=False)), index
