"""One tensor of several models as a stream of slabs, and sums over it that do not depend on how it is cut into slabs."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mconv.convert.sources.scratch import Scratch

BLOCK = 1 << 16
"""Elements that are summed at once, or a row if that is longer. Another number changes the last bits of sums."""

WIDER = {
    torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64,
    torch.float64: torch.float64,
}  # fmt: skip
"""The type in which sums are made that are rounded once to an element type."""


@dataclass(frozen=True, slots=True)
class Slab:
    """A run of elements of one tensor, flattened row by row, in every model."""

    start: int
    tensors: tuple[Tensor, ...]
    scratch: Scratch = field(default_factory=Scratch, compare=False)
    """Buffers for what is made of the slab; the next slab that has the same ones overwrites them."""

    def to(self, dtype: torch.dtype) -> "Slab":
        """Return the slab in another element type."""
        return self.of(self.scratch.cast(f"cast {at}", tensor, dtype) for at, tensor in enumerate(self.tensors))

    def of(self, tensors: Iterable[Tensor], skip: int = 0) -> "Slab":
        """Return a slab of other tensors, which begins `skip` elements later."""
        return Slab(self.start + skip, tuple(tensors), self.scratch)

    def runs(self, size: int) -> "Iterator[Slab]":
        """Yield the slab in shorter ones of `size` elements."""
        for at in range(0, len(self.tensors[0]), size):
            yield self.of((tensor[at : at + size] for tensor in self.tensors), at)

    def buffer(self, use: str, dtype: torch.dtype) -> Tensor:
        """Return an uninitialised tensor as long as the slab; the next one for the same use overwrites it."""
        return self.scratch.take(use, (len(self.tensors[0]),), dtype)


Slabs = Callable[[], Iterable[Slab]]
"""One pass over a tensor: its slabs in order, without gaps, each time it is called."""
Series = Callable[[Slab], Sequence[Tensor]]
"""What a statistic is taken of: some tensors as long as the slab that they are made from."""
Along = Literal["all", "row", "column"]
Products = np.ndarray | list[float]
"""Dot products of two vectors of a slab: one, or one of each row or column."""
Kernel = Callable[[Slab], Tensor]
"""The function that makes a slab of the merged tensor from the models' slabs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """One tensor of a Hugging Face model that is merged, and the parameters that hold for it."""

    name: str
    """Name of the merged tensor, which random masks depend on."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    """Element type that the models are cast to before anything is computed, and that of the result."""
    shared: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Mapping[str, Any], ...]
    """Parameters of each model, in the order of a slab's tensors; those of a base are not read."""
    base: int | None = None
    """Position of the base among the models, where it has a part of its own."""
    seed: int = 0

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def row(self) -> int:
        """Elements of a row; a vector is one row."""
        return self.shape[-1]

    @property
    def block(self) -> int:
        """Elements that are summed at once: whole rows."""
        return max(1, BLOCK // self.row) * self.row

    @property
    def others(self) -> list[int]:
        """Positions of the models that are not the base."""
        return [at for at in range(len(self.inputs)) if at != self.base]

    def each(self, name: str) -> list[Any]:
        """Return a parameter of each model that is not the base."""
        return [self.inputs[at][name] for at in self.others]

    def differences(self, slab: Slab) -> list[Tensor]:
        """Return each model's difference from the base, or each model where there is no base."""
        if self.base is None:
            return [slab.tensors[at] for at in self.others]
        base = slab.tensors[self.base]
        return [torch.sub(slab.tensors[at], base, out=slab.buffer(f"difference {at}", base.dtype)) for at in self.others]


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which mergekit and torch add up elements of a type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def blocks(slabs: Slabs, size: int) -> Iterator[Slab]:
    """Yield a tensor again in slabs of `size` elements, the last one shorter."""
    rest: Slab | None = None
    for slab in slabs():
        if rest is not None:
            slab = Slab(rest.start, tuple(map(torch.cat, zip(rest.tensors, slab.tensors, strict=True))), slab.scratch)
        whole = len(slab.tensors[0]) // size * size
        yield from slab.of(tensor[:whole] for tensor in slab.tensors).runs(size)
        left = whole < len(slab.tensors[0])
        rest = slab.of((tensor[whole:].clone() for tensor in slab.tensors), whole) if left else None
    if rest is not None:
        yield rest


def totals(merge: Merge, slabs: Slabs, series: Series) -> list[float]:
    """Return the sum of each series over a tensor, added up in fp64."""
    sums = [[float(values.double().numpy().sum()) for values in series(block)] for block in blocks(slabs, merge.block)]
    return [math.fsum(parts) for parts in zip(*sums, strict=True)]


def gram(merge: Merge, slabs: Slabs, along: Along = "all") -> np.ndarray:
    """Return the dot products of the models with each other, or of their differences from the base: (models, models, n).

    n: 1, or the number of rows or of columns.
    """
    pieces = slabs() if along == "row" else blocks(slabs, merge.block)
    parts = [_products(merge, piece, along) for piece in pieces]
    joined = [_joined(pair, along) for pair in zip(*parts, strict=True)]
    count = len(merge.others)
    full = np.empty((count, count, len(joined[0])))
    for (i, j), products in zip(_pairs(count), joined, strict=True):
        full[i, j] = full[j, i] = products
    return full


def _pairs(count: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(count) for j in range(i + 1)]


def _products(merge: Merge, slab: Slab, along: Along) -> list[Products]:
    vectors = [values.double().numpy().reshape(-1, merge.row) for values in merge.differences(slab)]
    pairs = ((vectors[i], vectors[j]) for i, j in _pairs(len(vectors)))
    if along == "all":  # numbers, not arrays: small arrays among large ones keep malloc from using memory again
        return [[float((one * other).sum())] for one, other in pairs]
    return [(one * other).sum(axis=0 if along == "column" else 1) for one, other in pairs]


def _joined(parts: Sequence[Products], along: Along) -> np.ndarray:
    if along == "row":
        return np.concatenate(parts)
    return np.array([math.fsum(of) for of in zip(*parts, strict=True)])
