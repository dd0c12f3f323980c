"""A Hugging Face tensor within a logical one: which box it holds, and where a run of its elements lies in that box.

Merging counts in Hugging Face tensors, flattened row by row; sources give boxes of logical tensors, which fuse several.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from mconv.convert.spelling.table import Stored
from mconv.errors import FormatError
from mconv.shard.axes import Box, lengths, runs
from mconv.shard.patch import patch_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Member:
    """A Hugging Face tensor, as one box of a logical tensor whose axes it has in an order of its own."""

    stored: Stored
    box: Box
    order: tuple[int, ...]
    """The logical tensor's axes as the Hugging Face tensor has them, outermost first."""

    @classmethod
    def of(cls, stored: Stored) -> "Member":
        """Return the member that a stored tensor is. Raises FormatError where it is not one box."""
        shape, blocks = stored.piece.shape, stored.piece.blocks
        patches = [patch_of(shape, block) for block in blocks]
        if len(patches) != 1 or any(len(dims) > 1 for dims in patches[0].axes):
            raise FormatError(f"{stored.key} is not one box of {stored.logical}, so it cannot be merged by itself")
        (patch,) = patches
        steps = [dims[0][1] if dims else prod(shape) + 1 for dims in patch.axes]  # an axis of size 1 may stand anywhere
        return cls(stored, patch.box, tuple(sorted(range(len(steps)), key=lambda axis: -steps[axis])))

    @property
    def name(self) -> str:
        """Return its name in Hugging Face."""
        return self.stored.key

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.piece.shape

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def boxes(self, start: int, stop: int) -> Iterator[Box]:
        """Yield the boxes of the logical tensor that make up the elements from `start` to `stop`, in order."""
        sizes = tuple(lengths(self.box)[axis] for axis in self.order)
        for _, ranges in runs(sizes, start, stop):
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
