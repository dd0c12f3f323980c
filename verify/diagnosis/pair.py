"""One logical tensor of two checkpoints, whole and comparable; and a fault recognised in it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mconv.convert.sources.checks import bits
from mconv.convert.sources.source import Source, dims_of
from mconv.convert.spelling.table import Kind, Logical
from mconv.shard.axes import Axes, whole
from mconv.verify.differences import Difference

Mend = Callable[[torch.Tensor], torch.Tensor]
"""Maps b's logical tensor, one dimension for each elementary axis, to the repaired one."""


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """A fault that was recognised in one tensor."""

    name: str
    what: str
    mend: Mend | None
    """Repair; None if b does not hold enough for one."""


@dataclass(frozen=True, slots=True, eq=False)
class TensorPair:
    """One logical tensor of both sides."""

    difference: Difference
    axes: Axes
    cut: str
    """Axis that tensor parallelism cuts."""
    kind: Kind
    """Kind of the tensor's row."""
    a: torch.Tensor
    b: torch.Tensor
    """The tensors as stored, one dimension for each elementary axis."""
    x: torch.Tensor
    y: torch.Tensor
    """Bits of both as integers, the wider rounded to the narrower."""
    permuted: bool
    """True if b can be a in another order."""

    @classmethod
    def read(
        cls, a: Source, b: Source, logical: Logical, names: tuple[Logical, Logical], found: Difference
    ) -> "TensorPair":
        """Return the pair of a logical tensor; `names` are the tensors that hold it on each side."""
        family = a.family
        one, two = entire(a, names[0]), entire(b, names[1])
        x, y = comparable(one, two)
        row, axes = family.row(logical.row), family.axes(logical)
        permuted = x.shape == y.shape and bool(x.sum(dtype=torch.int64) == y.sum(dtype=torch.int64))
        return cls(found, axes, row.cut, row.kind, one, two, x, y, permuted)

    @property
    def dtype(self) -> torch.dtype:
        """The narrower dtype of the two."""
        return narrower(self.a.dtype, self.b.dtype)


def entire(source: Source, logical: Logical) -> torch.Tensor:
    """Return a whole logical tensor."""
    return source.pull(logical, whole(dims_of(source, logical))).contiguous()


def narrower(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """Return the dtype in which two are compared: the narrower, the second's if neither is."""
    return a if a.itemsize < b.itemsize else b


def comparable(one: torch.Tensor, two: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both tensors as bits of the narrower dtype."""
    dtype = narrower(one.dtype, two.dtype)
    return bits(one.to(dtype)), bits(two.to(dtype))


def same(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Return whether two tensors have the same bits, the wider rounded."""
    return one.shape == two.shape and torch.equal(*comparable(one, two))
