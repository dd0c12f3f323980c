"""Differences from a base, whole, in fp64 and by sorting: `deltas.py`, `sparsify.py` and `swap.py` again.

Which elements a method takes, and which sign it elects, is decided in the element type of the merge: that is part of the
method, and so it is here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mconv.convert.blend.draws import key_of
from mconv.convert.blend.slabs import Merge, accumulator
from mconv.convert.blend.whole import Expected, Whole


def _order(values: Tensor) -> Tensor:
    """Return the rank of each element, 0 for the largest; of equal ones the earlier is the larger."""
    order = torch.argsort(values.flatten(), descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    return ranks.view(values.shape)


def _uniform(merge: Merge, model: int) -> Tensor:
    """Return the number in [0, 1) that each element of a model draws, all from the first on."""
    raw = np.random.Philox(key=key_of(merge.seed, model, merge.name)).random_raw(merge.numel // 2 + 1)
    words = np.stack([raw & np.uint64(0xFFFFFFFF), raw >> np.uint64(32)], axis=1).reshape(-1)[: merge.numel]
    return torch.from_numpy(words.astype(np.float64) / 2**32).view(merge.shape)


def _share(whole: Whole, at: int, difference: Tensor) -> Tensor:
    """Return which elements are drawn, each with the same chance."""
    return _uniform(whole.merge, at) < whole.merge.inputs[at]["density"]


def _by_rank(whole: Whole, at: int, difference: Tensor) -> Tensor:
    """Return which elements are drawn, with a chance that rises with their rank in their row."""
    merge, own = whole.merge, whole.merge.inputs[at]
    ranks = difference.abs().reshape(-1, merge.row).argsort(dim=-1, stable=True).argsort(dim=-1).double()
    spread = own["epsilon"] * (2 * ranks / (merge.row - 1) - 1) if merge.row > 1 and own["density"] > 0 else 0 * ranks
    return _uniform(merge, at) < own["density"] + spread.view(merge.shape)


def _largest(whole: Whole, at: int, difference: Tensor) -> Tensor:
    """Return which elements are the largest, one at least unless the density is 0."""
    density = whole.merge.inputs[at]["density"]
    return _order(difference.abs()) < (max(1, int(density * difference.numel())) if density > 0 else 0)


def _inner(whole: Whole, at: int, difference: Tensor) -> Tensor:
    """Return which elements are left without the smallest, then the largest."""
    own, size = whole.merge.inputs[at], difference.numel()
    kept = int(own["density"] * size)
    end = size - max(0, size - kept - int(own["gamma"] * size))
    ranks = _order(difference.abs())
    return (ranks < end) & (ranks >= end - kept)


KEPT: Mapping[str | None, Callable[[Whole, int, Tensor], Tensor]] = {
    None: lambda whole, at, difference: torch.ones_like(difference, dtype=torch.bool),
    "magnitude": _largest,
    "outliers": _inner,
    "random": _share,
    "ranks": _by_rank,
}


@dataclass(frozen=True, slots=True)
class Part:
    """One model's difference from the base with what is left out set to zero, and what it is multiplied by."""

    kept: Tensor
    factor: float
    weight: float

    @property
    def exact(self) -> Tensor:
        """The weighted difference."""
        return self.kept.double() * self.factor * self.weight

    @property
    def stepwise(self) -> Tensor:
        """The weighted difference, rounded after each step."""
        return ((self.kept.double() * self.factor).to(self.kept.dtype).double() * self.weight).to(self.kept.dtype)


def added(rule: str | None, elects: bool, whole: Whole) -> Expected:
    """Return the base and the sum of the weighted differences that are kept, and that agree in sign if it elects one."""
    shared, shape = whole.merge.shared, whole.merge.shape
    parts = [_part(rule, whole, at, values) for at, values in zip(whole.merge.others, whole.differences, strict=True)]
    if not parts:
        return whole.expected(torch.zeros(shape), torch.zeros(shape))
    everywhere = torch.ones(len(parts), *shape, dtype=torch.float64)
    votes, hangs = _votes([part.stepwise for part in parts]) if elects else (everywhere, torch.zeros(shape).bool())
    exact = torch.stack([part.exact for part in parts]) * votes
    mixed, terms = shared["lambda"] * exact.sum(dim=0), abs(shared["lambda"]) * exact.abs().sum(dim=0)
    if shared["normalize"]:
        counted = votes * _along_first([part.weight for part in parts], votes)
        divisor = counted.sum(dim=0)
        divisor = torch.where(divisor.abs() < (1e-300 if elects else 1e-8), 1, divisor)
        mixed, terms = mixed / divisor, terms / divisor.abs() * (counted.abs().sum(dim=0) / divisor.abs()).clamp(min=1)
    return _unless(hangs, whole.expected(mixed, terms))


def _part(rule: str | None, whole: Whole, at: int, difference: Tensor) -> Part:
    merge = whole.merge
    weight = float(torch.tensor(merge.inputs[at]["weight"], dtype=merge.dtype))
    kept = difference if merge.inputs[at]["density"] >= 1 else difference * KEPT[rule](whole, at, difference)
    if not merge.shared["rescale"] or rule is None or merge.inputs[at]["density"] >= 1:
        return Part(kept, 1.0, weight)
    before, after = (_as(one.double().abs().sum(), merge.dtype) for one in (difference, kept))
    return Part(kept, float(_as(before / after, merge.dtype)) if min(before, after) >= 1e-7 else 1.0, weight)


def _as(number: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a number as it is among tensors of an element type; among those of fp16 it is in fp32."""
    return number.to(torch.float32 if dtype == torch.float16 else dtype).double()


def _along_first(numbers: Sequence[float] | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(numbers, dtype=torch.float64).view(-1, *[1] * (like.ndim - 1))


def _votes(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return which elements have the sign of their sum, and where that sign hangs on rounding."""
    each = torch.stack(list(parts)).double()
    signed, size = each.sum(dim=0), each.abs().sum(dim=0)
    hangs = (signed != 0) & (signed.abs() < 4 * torch.finfo(accumulator(parts[0].dtype)).eps * size)
    return torch.where(signed >= 0, each > 0, each < 0).double(), hangs


def _unless(hangs: Tensor, found: Expected) -> Expected:
    """Return what is expected, without a limit to the difference where something hangs on rounding."""
    return Expected(found.values, found.slack.masked_fill(hangs, torch.inf))


def sce(whole: Whole) -> Expected:
    """Return the base and the mean of the selected differences that agree in sign, weighted by their mean square."""
    share, shape = whole.merge.shared["select_topk"], whole.merge.shape
    if not whole.differences:
        return whole.expected(torch.zeros(shape), torch.zeros(shape))
    each = torch.stack(whole.differences)
    if share < 1:
        variance = each.var(dim=0, unbiased=False)
        each = each * (_order(variance) < int(np.float32(int((variance != 0).sum())) * np.float32(share)))
    squares = each.double().square().flatten(1).mean(dim=1)
    weights = squares / squares.sum() if squares.sum() >= 1e-6 else torch.full_like(squares, 1 / len(squares))
    votes, hangs = _votes(list(each))
    counted = votes * _along_first(weights, votes)
    parts = each.double() * counted / counted.sum(dim=0).clamp(min=1e-6)
    return _unless(hangs, whole.expected(parts.sum(dim=0), parts.abs().sum(dim=0)))


def nearswap(whole: Whole) -> Expected:
    """Return the other model where it is at most `t` away, and a point `t` away towards it elsewhere."""
    assert whole.base is not None
    base, other = whole.base.double(), whole.tensors[whole.merge.others[0]].double()
    share = (whole.merge.shared["t"] / (base - other).abs().clamp(min=1e-6)).clamp(0, 1)
    return whole.expected(share * (other - base), base.abs() + other.abs())


def arcee_fusion(whole: Whole) -> Expected:
    """Return the base, with the other model's elements that matter most."""
    assert whole.base is not None
    base, other = whole.base, whole.tensors[whole.merge.others[0]]
    p, q = (torch.softmax(one, dim=-1) + 1e-8 for one in (other, base))
    importance = (other - base).abs() * (p * (p / q).log()).sum(dim=-1, keepdim=True)
    order = importance.flatten().sort().values
    low, median, high = (order[at * (len(order) - 1) // 4] for at in (1, 2, 3))
    taken = torch.where(importance >= median + 1.5 * (high - low), other - base, 0).double()
    return whole.expected(taken, taken.abs())
