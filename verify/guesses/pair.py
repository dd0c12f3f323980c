"""One logical tensor of two checkpoints, whole, made comparable; and what recognising a fault in it gives."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mconv.convert.sources.checks import bits
from mconv.convert.sources.source import Source, dims_of
from mconv.convert.table import Kind, Logical
from mconv.shard.axes import Axes, whole
from mconv.verify.where import Difference

Mend = Callable[[torch.Tensor], torch.Tensor]
"""From b's logical tensor, one dimension for each elementary axis, to the repaired one."""


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """A fault that was recognised in one tensor."""

    name: str
    what: str
    mend: Mend | None
    """None: what b holds is not enough to undo it."""


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A logical tensor of both sides."""

    difference: Difference
    axes: Axes
    cut: str
    """The axis that tensor parallelism cuts."""
    kind: Kind
    """What its row is."""
    a: torch.Tensor
    b: torch.Tensor
    """As they are stored, one dimension for each elementary axis."""
    x: torch.Tensor
    y: torch.Tensor
    """Their bits as integers, the wider rounded to the narrower."""
    permuted: bool
    """Whether b can be a in another order."""

    @classmethod
    def read(cls, a: Source, b: Source, logical: Logical, names: tuple[Logical, Logical], found: Difference) -> "Pair":
        """`names` are what each side holds it as."""
        family = a.family
        one, two = entire(a, names[0]), entire(b, names[1])
        x, y = comparable(one, two)
        row, axes = family.row(logical.row), family.axes(logical)
        permuted = x.shape == y.shape and bool(x.sum(dtype=torch.int64) == y.sum(dtype=torch.int64))
        return cls(found, axes, row.cut, row.kind, one, two, x, y, permuted)

    @property
    def dtype(self) -> torch.dtype:
        """The narrower one."""
        return narrower(self.a.dtype, self.b.dtype)


def entire(source: Source, logical: Logical) -> torch.Tensor:
    """A whole logical tensor."""
    return source.pull(logical, whole(dims_of(source, logical))).contiguous()


def narrower(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """The dtype in which two are compared: the second's where neither is narrower."""
    return a if a.itemsize < b.itemsize else b


def comparable(one: torch.Tensor, two: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as bits of the narrower dtype."""
    dtype = narrower(one.dtype, two.dtype)
    return bits(one.to(dtype)), bits(two.to(dtype))


def same(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether two tensors are the same bits, the wider rounded."""
    return one.shape == two.shape and torch.equal(*comparable(one, two))
