"""A merged tensor as it is expected, in fp64, and what the second evaluation of a merge starts from: whole tensors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mconv.convert.blend.slabs import WIDER, Merge

STEPS = 12
"""Roundings that an element goes through, at most, before the last one."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A merged tensor in fp64, and how far each element may be from it."""

    values: Tensor
    slack: Tensor
    """Largest difference that rounding explains; infinite where the elected sign hangs on rounding."""

    def stored_as(self, dtype: torch.dtype) -> "Expected":
        """Return what is expected of the tensor once it is rounded to another element type."""
        return Expected(self.values, self.slack + torch.finfo(dtype).eps / 2 * (self.values.abs() + self.slack))

    def wrong(self, found: Tensor) -> Tensor:
        """Return which elements of a merged tensor are farther away than rounding explains."""
        return ~((found.double().reshape(self.values.shape) - self.values).abs() <= self.slack)


@dataclass(frozen=True, slots=True)
class Whole:
    """The tensors of one merge, in its element type and in their shape."""

    merge: Merge
    tensors: Sequence[Tensor]

    @property
    def base(self) -> Tensor | None:
        return None if self.merge.base is None else self.tensors[self.merge.base]

    @property
    def differences(self) -> list[Tensor]:
        """The models' differences from the base, in the element type; the models where there is no base."""
        models = [self.tensors[at] for at in self.merge.others]
        return models if self.base is None else [model - self.base for model in models]

    def expected(self, mixed: Tensor, terms: Tensor, steps: torch.dtype | None = None) -> Expected:
        """Return what is expected of a sum that is added to the base. `terms`: the sum of the magnitudes it is made of.

        `steps`: the type in which it is made, before it is rounded; None: the merge's own.
        """
        base = torch.zeros_like(mixed) if self.base is None else self.base.double()
        values = base + mixed
        last, inner = (torch.finfo(dtype or self.merge.dtype).eps / 2 for dtype in (self.merge.dtype, steps))
        slack = 1.01 * last * values.abs() + STEPS * inner * (terms + (base.abs() if steps else 0))
        return Expected(values, slack + 2 * torch.finfo(self.merge.dtype).tiny)

    def sum(self, parts: Sequence[Tensor], steps: torch.dtype | None = None) -> Expected:
        """Return what is expected of the sum of some parts, which is made in a wider type."""
        return self.expected(total(parts), total(part.abs() for part in parts), steps or WIDER[self.merge.dtype])


def total(parts: Iterable[Tensor]) -> Tensor:
    """Return the sum of some tensors."""
    return torch.stack(list(parts)).sum(dim=0)
