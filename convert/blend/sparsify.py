"""Which elements of a difference are kept: the largest, all but the smallest and the outliers, or by chance."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mconv.convert.blend.bits import keep
from mconv.convert.blend.draws import below, key_of
from mconv.convert.blend.order import Cut, cuts, keys
from mconv.convert.blend.slabs import Merge, Slab, Slabs, totals
from mconv.errors import MconvError

Mask = Callable[[Tensor, int], Tensor]
"""The function that says which elements of a difference are kept, the first of which is element `start`."""
Rule = Callable[[Merge, Slabs], Sequence[Mask | None]]
"""The function that returns the mask of each model, None where all is kept."""


def magnitudes(merge: Merge, slab: Slab) -> list[Tensor]:
    """Return the absolute differences from the base."""
    return [difference.abs() for difference in merge.differences(slab)]


def largest(merge: Merge, slabs: Slabs) -> list[Mask | None]:
    """Return masks of the largest elements: a share `density` of all, and one at least if that is not 0."""
    densities = merge.each("density")
    counts = [max(1, int(density * merge.numel)) if density > 0 else 0 for density in densities]
    return _between(merge, slabs, densities, [(count, 0) for count in counts])


def inner(merge: Merge, slabs: Slabs) -> list[Mask | None]:
    """Return masks of a share `density` of the elements: the largest but for a share `gamma` of outliers."""
    densities, size = merge.each("density"), merge.numel
    kept = [int(density * size) for density in densities]
    tops = [min(int(gamma * size), size - count) for gamma, count in zip(merge.each("gamma"), kept, strict=True)]
    return _between(merge, slabs, densities, [(top + count, top) for top, count in zip(tops, kept, strict=True)])


def _between(
    merge: Merge, slabs: Slabs, densities: Sequence[float], ends: Sequence[tuple[int, int]]
) -> list[Mask | None]:
    """Return masks of the elements from one place in the order to another, both counted from the largest."""
    thinned = [at for at, density in enumerate(densities) if density < 1]

    def series(slab: Slab) -> list[Tensor]:
        sizes = magnitudes(merge, slab)
        return [sizes[at] for at in thinned]

    found = cuts(slabs, series, [ends[at] for at in thinned], merge.dtype, merge.numel) if thinned else []
    masks = {at: _window(*pair) for at, pair in zip(thinned, found, strict=True)}
    return [masks.get(at) for at in range(len(densities))]


def _window(outer: Cut, within: Cut) -> Mask:
    def mask(difference: Tensor, start: int) -> Tensor:
        found = keys(difference.abs())
        return torch.from_numpy(outer.above(found, start) & ~within.above(found, start))

    return mask


def at_random(merge: Merge, slabs: Slabs) -> list[Mask | None]:
    """Return masks that keep each element with the chance `density`."""
    each = zip(merge.others, merge.each("density"), strict=True)
    return [_share(key_of(merge.seed, at, merge.name), density) if density < 1 else None for at, density in each]


def _share(key: int, density: float) -> Mask:
    return lambda values, start: _drawn(key, start, len(values), density)


def by_rank(merge: Merge, slabs: Slabs) -> list[Mask | None]:
    """Return masks that keep each element with a chance of density -+ epsilon, by its rank in its row."""
    each = zip(merge.others, merge.each("density"), merge.each("epsilon"), strict=True)
    return [_by_rank(merge, *one) if one[1] < 1 else None for one in each]


def _by_rank(merge: Merge, model: int, density: float, epsilon: float) -> Mask:
    if density > 0 and not epsilon < density < 1 - epsilon:
        raise MconvError(
            f"{merge.name}: density {density} and epsilon {epsilon}: density - epsilon and density + epsilon must be "
            f"between 0 and 1"
        )
    key, spread = key_of(merge.seed, model, merge.name), epsilon if density > 0 else 0.0
    return lambda values, start: _drawn(key, start, len(values), density + spread * _ranks(values, merge.row))


def _ranks(values: Tensor, row: int) -> np.ndarray:
    """Return the rank of each magnitude in its row, from -1 for the smallest to 1; 0 in a row of one."""
    order = values.abs().view(-1, row).argsort(dim=1, stable=True)
    steps = torch.linspace(-1, 1, row, dtype=torch.float64) if row > 1 else torch.zeros(1, dtype=torch.float64)
    ranks = torch.empty(order.shape, dtype=torch.float64).scatter_(1, order, steps.expand(order.shape))
    return ranks.view(-1).numpy()


def _drawn(key: int, start: int, count: int, chance: float | np.ndarray) -> Tensor:
    return torch.from_numpy(below(key, start, count, chance))


RULES: Mapping[str | None, Rule] = {
    None: lambda merge, slabs: [None] * len(merge.others),
    "magnitude": largest,
    "outliers": inner,
    "random": at_random,
    "ranks": by_rank,
}


def masked(difference: Tensor, mask: Mask | None, start: int) -> Tensor:
    """Return a difference, what its mask does not keep of it set to zero in place."""
    return difference if mask is None else keep(difference, mask(difference, start))


def scales(merge: Merge, slabs: Slabs, masks: Sequence[Mask | None]) -> list[float]:
    """Return the factor that gives each masked difference the sum of magnitudes that the whole one has."""

    def series(slab: Slab) -> list[Tensor]:
        kept = zip(merge.differences(slab), masks, strict=True)
        return magnitudes(merge, slab) + [masked(values, mask, slab.start).abs() for values, mask in kept]

    sums = [rounded(one, merge.dtype) for one in totals(merge, slabs, series)]
    pairs = zip(sums[: len(masks)], sums[len(masks) :], strict=True)
    return [1.0 if min(pair) < 1e-7 else rounded(pair[0] / pair[1], merge.dtype) for pair in pairs]


def rounded(number: float, dtype: torch.dtype) -> float:
    """Return a number as mergekit has it among tensors of this type; those of fp16 it sums in fp32."""
    return float(torch.tensor(number, dtype=torch.float32 if dtype == torch.float16 else dtype))
