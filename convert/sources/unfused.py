"""Hugging Face's tensors of any model, read box by box: query, key, value, gate and up apart, whatever fuses them."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from mconv.convert.sources.source import Source, slab_boxes
from mconv.convert.spelling.table import Logical, Row
from mconv.shard.axes import Box, lengths, volume

SLAB = 1 << 19
"""Elements in hand at once, in double precision."""


@dataclass(frozen=True, slots=True)
class Unfused:
    """A tensor of Hugging Face's model, and the box of a logical tensor that it is."""

    key: str
    logical: Logical
    box: Box
    row: Row

    @property
    def dims(self) -> tuple[int, ...]:
        """The size of each elementary axis."""
        return lengths(self.box)

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each dimension in the order of the logical tensor: outputs, then inputs."""
        groups, dims = self.row.axes_of(self.logical.leaf).groups, iter(self.dims)
        return tuple(prod(next(dims) for _ in group) for group in groups)

    @property
    def elements(self) -> int:
        return volume(self.box)


def unfused(source: Source) -> dict[str, Unfused]:
    """Return the tensors of a source by Hugging Face's names, in the order of the forward pass, without a tied head."""
    stored = source.family.stored(source.spec)
    return {one.key: Unfused(one.key, one.logical, one.piece.blocks[0].box, source.family.row(one.logical.row))
            for one in stored}  # fmt: skip


def boxes(box: Box, elements: int = SLAB) -> Iterator[Box]:
    """Yield boxes of at most `elements` that make up a box, in row-major order: `slab_boxes`, moved to its start."""
    for part in slab_boxes(lengths(box), elements):
        yield tuple((start + first, stop + first) for (start, stop), (first, _) in zip(part, box, strict=True))
