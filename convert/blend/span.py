"""Methods whose result is a weighted sum of the models: what they need to know of a tensor is its Gram matrix.

Each finds coefficients in fp64, of the whole tensor, of each row or of each column. The sum is made in a wider type than
the models' and rounded once; that of `linear` in fp32 even for fp32 models, as mergekit makes it, so that bits agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mconv.convert.blend.slabs import WIDER, Along, Kernel, Merge, Slab, Slabs, accumulator, gram
from mconv.errors import MconvError

LINEAR = 0.9995
"""Cosine above which slerp interpolates linearly."""
TINY = 1e-6


@dataclass(frozen=True, slots=True)
class Span:
    """A weighted sum of the models that are not the base: of their differences from it, which it is added to."""

    merge: Merge
    coefficients: Sequence[Tensor]
    """One of each model, or one of each model for every row or column, in the type to add up in."""
    along: Along = "all"
    divisor: Tensor | None = None

    def __call__(self, slab: Slab) -> Tensor:
        wide = self.coefficients[0].dtype
        flat = slab.buffer("total", wide).zero_()
        total = self._shaped(flat)
        for coefficient, values in zip(self.coefficients, self.merge.differences(slab), strict=True):
            total.addcmul_(self._shaped(slab.scratch.cast("wide", values, wide)), self._fitting(coefficient, slab))
        if self.divisor is not None:
            total /= self.divisor
        if self.merge.base is not None:
            total += self._shaped(slab.scratch.cast("wide", slab.tensors[self.merge.base], wide))
        return slab.scratch.cast("merged", flat, self.merge.dtype)

    def _shaped(self, values: Tensor) -> Tensor:
        return values if self.along == "all" else values.view(-1, self.merge.row)

    def _fitting(self, coefficient: Tensor, slab: Slab) -> Tensor:
        """Return the coefficients of a slab's elements in a shape that broadcasts."""
        if self.along != "row":
            return coefficient
        first = slab.start // self.merge.row
        return coefficient[first : first + len(slab.tensors[0]) // self.merge.row, None]


def _span(merge: Merge, coefficients: np.ndarray, along: Along = "all") -> Span:
    """Return the kernel of coefficients (models, n)."""
    each = [torch.from_numpy(np.ascontiguousarray(of)).to(WIDER[merge.dtype]) for of in coefficients]
    return Span(merge, [of[0] if along == "all" else of for of in each], along)


def _whole(merge: Merge, slabs: Slabs) -> np.ndarray:
    """Return the Gram matrix of the models, or of their differences from the base."""
    return gram(merge, slabs)[..., 0]


def _rounded(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Return numbers as an element type has them, which mergekit decides by."""
    return torch.tensor(values, dtype=torch.float64).to(dtype).double().numpy()


def linear(merge: Merge, slabs: Slabs) -> Span:
    """Return the weighted mean of the models, or their weighted sum."""
    weights = torch.tensor(merge.each("weight"), dtype=accumulator(merge.dtype))
    divisor = _not_zero(weights.sum(), merge) if merge.shared["normalize"] else None
    return Span(merge, list(weights), divisor=divisor)


def _not_zero(total: Any, merge: Merge) -> Any:
    if total == 0:
        raise MconvError(f"{merge.name}: the weights {merge.each('weight')} add up to 0, and cannot be normalized")
    return total


def passthrough(merge: Merge, slabs: Slabs) -> Kernel:
    """Return the one model that there is, scaled."""
    (scale,) = merge.each("scale")
    return lambda slab: slab.tensors[0] if scale is None else slab.tensors[0] * scale


def slerp(merge: Merge, slabs: Slabs) -> Span:
    """Return the spherical interpolation from the base (t = 0) to the other model, each one vector."""
    t, both = merge.shared["t"], replace(merge, base=None)
    found = _whole(both, slabs)
    norms = np.sqrt(np.diagonal(found))
    cosine = float(np.clip(found[0, 1] / np.prod(np.where(norms > 1e-8, norms, 1)), -1, 1))
    shares = np.array([1 - t if at == merge.base else t for at in both.others])
    return _span(both, _arc(shares[:, None], np.array([cosine]), colinear=np.array([abs(cosine) > LINEAR])))


def _arc(shares: np.ndarray, cosine: np.ndarray, *, colinear: np.ndarray) -> np.ndarray:
    """Return the coefficients of two vectors on the arc between them; on the line between those that are colinear."""
    angle = np.arccos(np.where(colinear, 0, cosine))
    return np.where(colinear, shares, np.sin(shares * angle) / np.sin(angle))


def nuslerp(merge: Merge, slabs: Slabs) -> Span:
    """Return the spherical interpolation of two models or of their differences from a base, as one vector, or row by row.

    mergekit's `nuslerp_row_wise` goes along columns.
    """
    first, second = merge.each("weight")
    t = 0.5 if abs(first + second) < TINY else second / (first + second)
    along = _along(merge, merge.shared["nuslerp_flatten"], merge.shared["nuslerp_row_wise"])
    found = gram(merge, slabs, along)
    norms = np.maximum(np.sqrt(found[[0, 1], [0, 1]]), 1e-7)
    cosine = np.clip(found[0, 1] / norms[0] / norms[1], -1, 1)
    colinear = 1 - _rounded(cosine, merge.dtype) ** 2 <= 1e-16
    return _span(merge, _arc(np.array([[1 - t], [t]]), cosine, colinear=colinear), along)


def _along(merge: Merge, whole: bool, columns: bool = False) -> Along:
    if whole or len(merge.shape) == 1:
        return "all"
    return "column" if columns else "row"


def model_stock(merge: Merge, slabs: Slabs) -> Span:
    """Return the point between the base and the mean of the models that the mean angle between these asks for."""
    along = _along(merge, not merge.shared["filter_wise"])
    found = gram(merge, slabs, along)
    count = len(found)
    norms = np.sqrt(found[range(count), range(count)])
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    cosine = np.mean([np.clip(found[i, j] / np.maximum(norms[i] * norms[j], TINY), -1, 1) for i, j in pairs], axis=0)
    below = 1 + (count - 1) * cosine
    singular = np.abs(below) < TINY
    t = np.where(singular, 0, count * cosine / np.where(singular, 1, below))
    return _span(merge, np.tile(t / count, (count, 1)), along)


def multislerp(merge: Merge, slabs: Slabs) -> Kernel:
    """Return the weighted mean of the models' directions, at the weighted mean of their norms.

    mergekit goes on to the tangent space at that mean, where the weighted sum is zero but for rounding.
    """
    weights = np.array(merge.each("weight"), dtype=float)
    if len(weights) == 1:
        return lambda slab: slab.tensors[merge.others[0]]
    if merge.shared["normalize_weights"]:
        weights = weights / _not_zero(weights.sum(), merge)
    found = _whole(merge, slabs)
    norms = np.sqrt(np.diagonal(found))
    units = weights / (norms + merge.shared["eps"])
    length = np.sqrt(max(0.0, units @ found @ units))
    if length >= merge.shared["eps"]:
        return _span(merge, (units / length * (norms @ weights))[:, None])
    if len(weights) > 2:
        raise MconvError(f"{merge.name}: the weighted directions of the models cancel out; give other weights")
    return _span(merge, weights[:, None])


def karcher(merge: Merge, slabs: Slabs) -> Span:
    """Return the Karcher mean of the models' directions on the sphere, at the mean of their norms."""
    found, tol = _whole(merge, slabs), merge.shared["tol"]
    norms = np.sqrt(np.diagonal(found))
    used = np.flatnonzero(norms > tol)
    coefficients = np.zeros(len(norms))
    if len(norms) == 1:
        coefficients[:] = 1
    elif len(used):
        cosines = found[np.ix_(used, used)] / np.outer(norms[used], norms[used])
        coefficients[used] = _karcher(cosines, merge.shared["max_iter"], tol) / norms[used] * norms.mean()
    return _span(merge, coefficients[:, None])


def _karcher(cosines: np.ndarray, steps: int, tol: float) -> np.ndarray:
    """Return the mean of unit vectors, as a sum of them, from their Gram matrix."""

    def length(vector: np.ndarray) -> float:
        return float(np.sqrt(max(0.0, vector @ cosines @ vector)))

    mean = np.full(len(cosines), 1 / len(cosines))
    mean = mean / length(mean) if length(mean) >= tol else np.eye(len(cosines))[0]
    for _ in range(steps):
        dots = np.clip(cosines @ mean, -1, 1)
        angles = np.arccos(dots)
        far = angles >= tol
        pull = np.where(far, angles / np.sin(np.where(far, angles, 1)), 0) / len(cosines)
        tangent = pull - (pull @ dots) * mean
        if (step := length(tangent)) < tol:
            break
        mean = np.cos(step) * mean + np.sin(step) * (tangent / step)
        mean = mean / length(mean)
    return mean
