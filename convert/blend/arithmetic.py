"""The rule of each method, and the merged tensor slab by slab."""

import functools
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from mconv.convert.blend import deltas, span, swap
from mconv.convert.blend.methods import METHODS
from mconv.convert.blend.slabs import Kernel, Merge, Slab, Slabs

RULES: Mapping[str, Callable[[Merge, Slabs], Kernel]] = {
    "linear": span.linear,
    "slerp": span.slerp,
    "nuslerp": span.nuslerp,
    "multislerp": span.multislerp,
    "karcher": span.karcher,
    "model_stock": span.model_stock,
    "passthrough": span.passthrough,
    "sce": deltas.sce,
    "arcee_fusion": swap.arcee_fusion,
    "nearswap": swap.nearswap,
    **{
        method.name: partial(deltas.prepare, rule=method.deltas[0], elects=method.deltas[1])
        for method in METHODS.values()
        if method.deltas
    },
}


def working_dtype(named: str | None, dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the element type to compute in: the one that a recipe names, or the narrowest that holds all models'."""
    return getattr(torch, named) if named else functools.reduce(torch.promote_types, dtypes)


def kernel(method: str, merge: Merge, slabs: Slabs) -> Kernel:
    """Return the function that makes any slab of a merged tensor, once the passes that its statistics take are done.

    `slabs` goes through the models' tensors each time it is called; of a method with `rows` in whole rows. What is
    returned depends neither on where slabs begin and end nor on the order in which it is asked for them.
    """

    def cast() -> Iterable[Slab]:
        return (slab.to(merge.dtype) for slab in slabs())

    made = RULES[method](merge, cast)

    def merged(slab: Slab) -> Tensor:
        return made(slab.to(merge.dtype))

    return merged
