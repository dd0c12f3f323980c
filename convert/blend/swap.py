"""Methods that take elements of one other model where some measure says so: NearSwap and Arcee's fusion."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mconv.convert.blend.order import largest, value
from mconv.convert.blend.slabs import Kernel, Merge, Slab, Slabs


def pair(merge: Merge, slab: Slab) -> tuple[Tensor, Tensor]:
    """Return the base and the other model."""
    assert merge.base is not None
    return slab.tensors[merge.base], slab.tensors[merge.others[0]]


def nearswap(merge: Merge, slabs: Slabs) -> Kernel:
    """Return the kernel that goes to the other model where that is near, and a distance `t` towards it elsewhere."""

    def kernel(slab: Slab) -> Tensor:
        base, other = pair(merge, slab)
        weight = (merge.shared["t"] / (base - other).abs().clamp(min=1e-6)).clamp(min=0, max=1)
        return weight * other + (1 - weight) * base

    return kernel


@dataclass(frozen=True, slots=True)
class Fusion:
    """The base, and the other model where its difference matters at least as much as a threshold."""

    merge: Merge
    threshold: Tensor

    def __call__(self, slab: Slab) -> Tensor:
        base, other = pair(self.merge, slab)
        return base + (other - base) * (importance(self.merge, slab) >= self.threshold)


def arcee_fusion(merge: Merge, slabs: Slabs) -> Fusion:
    """Return the kernel whose threshold is 1.5 interquartile ranges above the median importance.

    mergekit estimates the quartiles of more than a million elements from a sample; these are exact.
    """
    last = merge.numel - 1
    counts = [merge.numel - at * last // 4 for at in (1, 2, 3)]
    (found,) = largest(slabs, lambda slab: [importance(merge, slab)], [counts], merge.dtype)
    low, median, high = torch.tensor([value(one.key, merge.dtype) for one in found], dtype=merge.dtype)
    return Fusion(merge, median + 1.5 * (high - low))


def importance(merge: Merge, slab: Slab) -> Tensor:
    """Return how much each element of the other model matters: its distance, times its row's divergence (as softmax)."""
    base, other = (tensor.view(-1, merge.row) for tensor in pair(merge, slab))
    p, q = (torch.softmax(tensor, dim=-1) + 1e-8 for tensor in (other, base))
    divergence = (p * torch.log(p / q)).sum(dim=-1, keepdim=True)
    return ((other - base).abs() * divergence).view(-1)
