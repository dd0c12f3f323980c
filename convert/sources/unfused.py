"""Hugging Face's tensors of any model, read box by box: query, key, value, gate and up apart, whatever fuses them.

A logical tensor may fuse several of them, and may have their axes in another order. A run of the elements of one of them,
flattened row by row, is a few boxes of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from mconv.convert.sources.source import slab_boxes
from mconv.convert.spelling.table import Family, Logical, Row, Stored
from mconv.errors import FormatError
from mconv.shard.axes import Box, lengths, runs
from mconv.shard.patch import patch_of
from mconv.spec import ModelSpec

if TYPE_CHECKING:
    import torch

SLAB = 1 << 19
"""Elements in hand at once, in double precision."""


@dataclass(frozen=True, slots=True)
class Unfused:
    """A tensor of Hugging Face's model, as one box of a logical tensor whose axes it has in an order of its own."""

    stored: Stored
    row: Row
    box: Box
    order: tuple[int, ...]
    """The logical tensor's axes as the Hugging Face tensor has them, outermost first."""

    @classmethod
    def of(cls, stored: Stored, row: Row) -> "Unfused":
        """Return the tensor that is stored. Raises FormatError where it is not one box."""
        shape, blocks = stored.piece.shape, stored.piece.blocks
        patches = [patch_of(shape, block) for block in blocks]
        if len(patches) != 1 or any(len(dims) > 1 for dims in patches[0].axes):
            raise FormatError(f"{stored.key} is not one box of {stored.logical}, so it cannot be read by itself")
        (patch,) = patches
        steps = [dims[0][1] if dims else prod(shape) + 1 for dims in patch.axes]  # an axis of size 1 may stand anywhere
        return cls(stored, row, patch.box, tuple(sorted(range(len(steps)), key=lambda axis: -steps[axis])))

    @property
    def key(self) -> str:
        """The name in Hugging Face."""
        return self.stored.key

    @property
    def logical(self) -> Logical:
        return self.stored.logical

    @property
    def dims(self) -> tuple[int, ...]:
        """The size of each elementary axis."""
        return lengths(self.box)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.piece.shape

    @property
    def matrix(self) -> tuple[int, ...]:
        """The size of each dimension in the order of the logical tensor: outputs, then inputs."""
        groups, dims = self.row.axes_of(self.logical.leaf).groups, iter(self.dims)
        return tuple(prod(next(dims) for _ in group) for group in groups)

    @property
    def elements(self) -> int:
        return prod(self.shape)

    def boxes(self, start: int, stop: int) -> Iterator[Box]:
        """Yield the boxes of the logical tensor that make up the elements from `start` to `stop`, in order."""
        for _, ranges in runs(tuple(self.dims[axis] for axis in self.order), start, stop):
            found = dict(zip(self.order, ranges, strict=True))
            yield tuple((first + found[i][0], first + found[i][1]) for i, (first, _) in enumerate(self.box))

    def start_of(self, box: Box) -> int | None:
        """Return the number of a box's first element; None if its elements do not follow each other."""
        return start_of(box, self.box, self.order)

    def flat(self, values: "torch.Tensor") -> "torch.Tensor":
        """Return the elements of a box, which has a dimension for each axis of the logical tensor, in the order here."""
        return values.permute(self.order).reshape(-1)

    def as_box(self, values: "torch.Tensor", box: Box) -> "torch.Tensor":
        """Return what `flat` has flattened as the box again."""
        sizes = lengths(box)
        back = sorted(range(len(self.order)), key=lambda at: self.order[at])
        return values.view([sizes[axis] for axis in self.order]).permute(back)


def unfused(family: Family, spec: ModelSpec) -> dict[str, Unfused]:
    """Return the tensors of a model by Hugging Face's names, in the order of the forward pass, without a tied head."""
    return {one.key: Unfused.of(one, family.row(one.logical.row)) for one in family.stored(spec)}


def boxes(box: Box, elements: int = SLAB) -> Iterator[Box]:
    """Yield boxes of at most `elements` that make up a box, in row-major order: `slab_boxes`, moved to its start."""
    for part in slab_boxes(lengths(box), elements):
        yield tuple((start + first, stop + first) for (start, stop), (first, _) in zip(part, box, strict=True))


def start_of(box: Box, whole: Box, order: Sequence[int]) -> int | None:
    """Return the number of a box's first element within a larger box, whose axes lie in this order, outermost first.

    None if the elements of the box do not follow each other.
    """
    start, room, split = 0, 1, False
    for axis in reversed(order):
        (first, last), (low, high) = box[axis], whole[axis]
        if split and last - first > 1:
            return None
        split = split or last - first < high - low
        start, room = start + (first - low) * room, room * (high - low)
    return start
