"""The interface of sources: logical tensors by name and box, whatever they are made of.

A source is a checkpoint's pieces, or tensors made of other sources': an adapter merged, weights drawn at random. Nothing
here imports torch, so that a plan of any source is made without it.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mconv.convert.formats.dtype import DType, in_torch
from mconv.convert.spelling.dtypes import most
from mconv.convert.spelling.table import Family, Logical, Stored
from mconv.shard.axes import Box
from mconv.shard.patch import patch_of
from mconv.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from mconv.convert.sources.scratch import Scratch


@dataclass(frozen=True, slots=True)
class Slab:
    """A box of a logical tensor and its elements, row-major."""

    box: Box
    tensor: "torch.Tensor"


@runtime_checkable
class Source(Protocol):
    """A source of logical tensors."""

    @property
    def label(self) -> str:
        """The name in messages: of a checkpoint, its folder."""

    @property
    def family(self) -> Family:
        """The table of the logical tensors and their axes."""

    @property
    def spec(self) -> ModelSpec:
        """The architecture that gives the axes their sizes, which need not be that of any checkpoint."""

    def tensors(self) -> Collection[Logical]:
        """Return the logical tensors that it has, each once."""

    def dtypes(self, tensor: Logical) -> Collection[DType]:
        """Return the dtypes that a tensor is kept in: one, but where its pieces differ."""

    def pieces(self, tensor: Logical) -> Sequence[Stored]:
        """Return the stored tensors that hold a tensor or what it is made of, copies included; none if it is computed."""

    def pull(self, tensor: Logical, box: Box, scratch: "Scratch | None" = None) -> "torch.Tensor":
        """Return a box of a tensor, one dimension for each elementary axis: a view, or overwritten by the next pull."""

    def conflicts(self, tensor: Logical, slab: Slab) -> Iterable[tuple[Stored, Stored]]:
        """Yield each stored copy that differs within a slab, and the copy that is read; a derived source has none."""

    def files(self) -> Collection[Path]:
        """Return the files that it reads."""

    def fingerprint(self) -> list[Any]:
        """Return JSON values that decide the tensors, beside the bytes of the files."""


@dataclass(frozen=True, slots=True)
class Derived:
    """A source whose tensors are those of another one, changed as they are pulled: the base of such classes."""

    base: Source

    @property
    def label(self) -> str:
        return self.base.label

    @property
    def family(self) -> Family:
        return self.base.family

    @property
    def spec(self) -> ModelSpec:
        return self.base.spec

    def tensors(self) -> Collection[Logical]:
        return self.base.tensors()

    def dtypes(self, tensor: Logical) -> Collection[DType]:
        return self.base.dtypes(tensor)

    def pieces(self, tensor: Logical) -> Sequence[Stored]:
        return self.base.pieces(tensor)

    def conflicts(self, tensor: Logical, slab: Slab) -> Iterable[tuple[Stored, Stored]]:
        return self.base.conflicts(tensor, slab)

    def files(self) -> Collection[Path]:
        return self.base.files()


def dims_of(source: Source, tensor: Logical) -> tuple[int, ...]:
    """Return the size of each elementary axis of a tensor."""
    return source.family.axes(tensor).dims(source.spec.sizes)


def dtype_of(source: Source, tensor: Logical) -> "torch.dtype":
    """Return the dtype that a tensor is pulled in: the smallest that holds all its pieces."""
    first, *others = map(in_torch, source.dtypes(tensor))
    if not others:
        return first
    import torch

    return reduce(torch.promote_types, others, first)


def usual_dtype(source: Source) -> DType:
    """Return the dtype of most elements of a source."""
    return most((dtype, prod(dims_of(source, x))) for x in source.tensors() for dtype in source.dtypes(x))


def nbytes_of(source: Source, tensor: Logical) -> int:
    """Return the bytes of a tensor as it is pulled."""
    return prod(dims_of(source, tensor)) * dtype_of(source, tensor).itemsize


def split_of(source: Source, tensor: Logical) -> int:
    """Return the first axis that some piece stores as several dimensions, so that no slab should cut it."""
    pieces = [(stored.piece.shape, block) for stored in source.pieces(tensor) for block in stored.piece.blocks]
    return min((patch_of(shape, block).split for shape, block in pieces), default=len(dims_of(source, tensor)))


def slab_boxes(dims: tuple[int, ...], elements: int, *, keep: int | None = None) -> Iterator[Box]:
    """Yield boxes of at most `elements` that follow each other in row-major order.

    A box is larger if one innermost row is, or where axes from number `keep` on, which are never cut, make it so.
    """
    keep = len(dims) - 1 if keep is None else min(keep, len(dims) - 1)
    if prod(dims) <= elements or (keep <= 0 and len(dims) > 1) or prod(dims) == 0:
        yield tuple((0, n) for n in dims)
        return
    inner = prod(dims[1:])
    if inner > elements and len(dims) > 1:
        for i in range(dims[0]):
            yield from (((i, i + 1), *box) for box in slab_boxes(dims[1:], elements, keep=keep - 1))
        return
    step = max(1, elements // inner)
    for i in range(0, dims[0], step):
        yield ((i, min(i + step, dims[0])), *((0, n) for n in dims[1:]))
