"""Merged tensors again: whole, in fp64 and from each method's definition, to check what was made slab by slab."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from mconv.convert.blend import whole_deltas, whole_sums
from mconv.convert.blend.methods import METHODS
from mconv.convert.blend.slabs import Merge
from mconv.convert.blend.whole import Expected, Whole

RULES: Mapping[str, Callable[[Whole], Expected]] = {
    "linear": whole_sums.linear,
    "slerp": whole_sums.slerp,
    "nuslerp": whole_sums.nuslerp,
    "multislerp": whole_sums.multislerp,
    "karcher": whole_sums.karcher,
    "model_stock": whole_sums.model_stock,
    "passthrough": whole_sums.passthrough,
    "sce": whole_deltas.sce,
    "nearswap": whole_deltas.nearswap,
    "arcee_fusion": whole_deltas.arcee_fusion,
    **{name: partial(whole_deltas.added, *method.deltas) for name, method in METHODS.items() if method.deltas},
}


ALONE = ("linear", "passthrough", "nearswap")
"""Methods that make each element of the same elements alone."""


def by_element(method: str, merge: Merge) -> bool:
    """Return whether a merge makes each element of the same elements alone, so that rows can be evaluated alone."""
    if METHODS[method].deltas is None:
        return method in ALONE
    return all(density >= 1 for density in merge.each("density"))


def evaluate(method: str, merge: Merge, tensors: Sequence[Tensor]) -> Expected:
    """Return what a method makes of one tensor of each model."""
    return RULES[method](Whole(merge, [tensor.to(merge.dtype).reshape(merge.shape) for tensor in tensors]))
