"""Tensors on disk: located without being loaded, promised before they are written."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from mconv.convert.formats.dtype import DType

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Located:
    """A tensor on disk: file, where its bytes start, dtype, shape. It is contiguous."""

    path: Path
    offset: int
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def load(self) -> "torch.Tensor":
        """Return a view on the mapped file. This is where torch comes in: who only plans never calls it."""
        from mconv.convert.formats import mapped

        return mapped.load(self)


@dataclass(frozen=True, slots=True)
class Joined(Located):
    """A tensor whose elements lie in several places, one run after another: `path` and `offset` are of the first."""

    parts: tuple[Located, ...]

    def load(self) -> "torch.Tensor":
        """Return a copy: the runs end to end."""
        from mconv.convert.formats import mapped

        return mapped.joined(self.parts, self.shape)


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor that a format is about to write."""

    key: str
    shape: tuple[int, ...]
    dtype: DType

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize
