"""Methods that add weighted differences from a base: task arithmetic, TIES, DARE, breadcrumbs, DELLA, SCE.

Elements are computed in the element type of the merge, operation by operation as mergekit does, so that bits agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mconv.convert.blend.bits import keep, ones_for_zeros, same_sign, where
from mconv.convert.blend.order import cuts, keys
from mconv.convert.blend.slabs import Merge, Slab, Slabs, accumulator, totals
from mconv.convert.blend.sparsify import RULES, Mask, masked, scales


@dataclass(frozen=True, slots=True)
class Deltas:
    """The base and the sum of the differences from it, each masked, scaled and weighted."""

    merge: Merge
    masks: Sequence[Mask | None]
    factors: Sequence[float]
    """What each masked difference is multiplied by before it is weighted."""
    weights: Sequence[Tensor]
    elects: bool
    """Whether only the differences count that have the sign of their sum, element by element."""

    def __call__(self, slab: Slab) -> Tensor:
        assert self.merge.base is not None
        base = slab.tensors[self.merge.base]
        if not self.weights:
            return base
        parts = self._weighted(slab)
        votes = elected(parts) if self.elects else None
        mixed = added(parts if votes is None else [keep(part, vote) for part, vote in zip(parts, votes, strict=True)])
        if self.merge.shared["normalize"]:
            mixed /= self._divisor(votes)
        if self.merge.shared["lambda"] != 1:
            mixed *= self.merge.shared["lambda"]
        return base + mixed

    def _weighted(self, slab: Slab) -> list[Tensor]:
        each = zip(self.merge.differences(slab), self.masks, self.factors, self.weights, strict=True)
        kept = ((masked(values, mask, slab.start), factor, weight) for values, mask, factor, weight in each)
        return [(values if factor == 1 else values.mul_(factor)).mul_(weight) for values, factor, weight in kept]

    def _divisor(self, votes: Sequence[Tensor] | None) -> Tensor:
        """Return the sum of the weights that count, 1 where there is none."""
        if votes is not None:
            return ones_for_zeros(added([where(vote, weight) for vote, weight in zip(votes, self.weights, strict=True)]))
        total = torch.stack(list(self.weights)).sum()
        return torch.ones_like(total) if total.abs() < 1e-8 else total


def prepare(merge: Merge, slabs: Slabs, *, rule: str | None, elects: bool) -> Deltas:
    """Return the kernel of a method that thins out differences by a rule of `sparsify` and may elect signs."""
    masks = RULES[rule](merge, slabs)
    rescaled = merge.shared["rescale"] and any(mask is not None for mask in masks)
    factors = scales(merge, slabs, masks) if rescaled else [1.0] * len(masks)
    return Deltas(merge, masks, factors, list(torch.tensor(merge.each("weight"), dtype=merge.dtype)), elects)


def added(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors, from the first to the last, rounded once."""
    total = torch.zeros_like(parts[0], dtype=accumulator(parts[0].dtype))
    for part in parts:
        total += part
    return total.to(parts[0].dtype)


def elected(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return which elements of each tensor have the sign of the sum of all; a sum of 0 counts as positive."""
    total = added(parts)
    return [same_sign(part, total) for part in parts]


@dataclass(frozen=True, slots=True)
class Sce:
    """The base and a mean of the differences from it, of what was selected and has the elected sign."""

    merge: Merge
    select: Mask | None
    weights: Sequence[Tensor]

    def __call__(self, slab: Slab) -> Tensor:
        assert self.merge.base is not None
        base = slab.tensors[self.merge.base]
        if not self.weights:
            return base
        parts = selected(self.merge, slab, self.select)
        counted = [where(vote, weight) for vote, weight in zip(elected(parts), self.weights, strict=True)]
        merged = added([part * weight for part, weight in zip(parts, counted, strict=True)])
        return base + merged / added(counted).clamp(min=1e-6)


def sce(merge: Merge, slabs: Slabs) -> Sce:
    """Return the kernel of SCE: select by variance, calculate each model's weight, erase the minority's signs."""
    if not merge.others:
        return Sce(merge, None, ())
    select = _select(merge, slabs) if merge.shared["select_topk"] < 1 else None
    squares = totals(merge, slabs, lambda slab: [part.square() for part in selected(merge, slab, select)])
    means = torch.tensor(squares, dtype=torch.float64).div(merge.numel).to(merge.dtype)
    total = means.sum()
    weights = torch.ones_like(means) / len(means) if total < 1e-6 else means / total
    return Sce(merge, select, list(weights))


def selected(merge: Merge, slab: Slab, select: Mask | None) -> list[Tensor]:
    """Return the differences from the base where they are selected, by their variance, and zero elsewhere."""
    differences = merge.differences(slab)
    if select is None:
        return differences
    mask = select(variance(differences), slab.start)
    return [keep(difference, mask) for difference in differences]


def variance(differences: Sequence[Tensor]) -> Tensor:
    """Return the variance of each element over the models."""
    wide = [difference.double() for difference in differences]
    mean = sum(wide[1:], wide[0]) / len(wide)
    squares = [(one - mean).square_() for one in wide]
    return (sum(squares[1:], squares[0]) / len(wide)).to(differences[0].dtype)


def _select(merge: Merge, slabs: Slabs) -> Mask:
    """Return the mask of the share `select_topk` of the elements that differ most, of those that differ at all."""

    def series(slab: Slab) -> list[Tensor]:
        return [variance(merge.differences(slab))]

    (differing,) = totals(merge, slabs, lambda slab: [one != 0 for one in series(slab)])
    # In fp32, as mergekit counts: a tensor times a number.
    count = int(torch.tensor(int(differing)) * merge.shared["select_topk"])
    ((cut,),) = cuts(slabs, series, [[count]], merge.dtype, merge.numel)
    return lambda values, start: torch.from_numpy(cut.above(keys(values), start))
