"""Weighted sums of models, whole and in fp64, from the textbook: `span.py` again, for `reference.py`."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mconv.convert.blend.slabs import WIDER, accumulator
from mconv.convert.blend.whole import Expected, Whole, total


def linear(whole: Whole) -> Expected:
    """Return the weighted mean or the weighted sum."""
    weights = torch.tensor(whole.merge.each("weight"), dtype=torch.float64)
    divisor = weights.sum() if whole.merge.shared["normalize"] else torch.ones(())
    parts = [model.double() * weight / divisor for model, weight in zip(whole.differences, weights, strict=True)]
    exact = whole.sum(parts, accumulator(whole.merge.dtype))
    return Expected(exact.values, exact.slack * max(1.0, float(weights.abs().sum() / divisor.abs())))


def passthrough(whole: Whole) -> Expected:
    """Return the model, scaled."""
    (scale,) = whole.merge.each("scale")
    return whole.sum([whole.tensors[0].double() * (1.0 if scale is None else scale)], accumulator(whole.merge.dtype))


def cosine_of(a: Tensor, b: Tensor, dim: int, floor: float) -> Tensor:
    """Return the cosine of the angle between two vectors, or of many along a dimension."""
    first, second = (x.norm(dim=dim, keepdim=True).clamp(min=floor) for x in (a, b))
    return ((a * b).sum(dim=dim, keepdim=True) / (first * second)).clamp(-1, 1)


def arc(t: float, cosine: Tensor, colinear: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coefficients of two vectors at `t` on the arc between them, or on the line."""
    angle = torch.acos(cosine)
    first, second = (torch.where(colinear, x, torch.sin(x * angle) / torch.sin(angle)) for x in (1 - t, t))
    return first, second


def slerp(whole: Whole) -> Expected:
    """Return the point on the arc from the base to the other model."""
    assert whole.base is not None
    base, other = (one.double().flatten() for one in (whole.base, whole.tensors[whole.merge.others[0]]))
    cosine = cosine_of(base, other, 0, 1e-8)
    first, second = arc(whole.merge.shared["t"], cosine, cosine.abs() > 0.9995)
    alone = Whole(replace(whole.merge, base=None), whole.tensors)
    return alone.sum([part.view(whole.merge.shape) for part in (first * base, second * other)])


def nuslerp(whole: Whole) -> Expected:
    """Return the point on the arc between two models, or on one arc for each of their rows or columns."""
    shared, weights = whole.merge.shared, whole.merge.each("weight")
    t = 0.5 if abs(sum(weights)) < 1e-6 else weights[1] / sum(weights)
    a, b = (one.double().flatten() if shared["nuslerp_flatten"] else one.double() for one in whole.differences)
    cosine = cosine_of(a, b, 0 if shared["nuslerp_row_wise"] or a.ndim == 1 else -1, 1e-7)
    first, second = arc(t, cosine, 1 - cosine.to(whole.merge.dtype).double() ** 2 <= 1e-16)
    return whole.sum([part.view(whole.merge.shape) for part in (first * a, second * b)])


def model_stock(whole: Whole) -> Expected:
    """Return the point between the base and the mean of the models, for the whole tensor or each row."""
    by_row = whole.merge.shared["filter_wise"]
    offsets = [one.double() if by_row else one.double().flatten() for one in whole.differences]
    count = len(offsets)
    dots = [(a * b).sum(dim=-1, keepdim=True) for i, a in enumerate(offsets) for b in offsets[:i]]
    norms = [offset.norm(dim=-1, keepdim=True) for offset in offsets]
    products = [(a * b).clamp(min=1e-6) for i, a in enumerate(norms) for b in norms[:i]]
    cosine = (torch.stack(dots) / torch.stack(products)).clamp(-1, 1).mean(dim=0)
    singular = (1 + (count - 1) * cosine).abs() < 1e-6
    t = torch.where(singular, 0, count * cosine / (1 + (count - 1) * cosine))
    return whole.sum([(t * offset / count).view(whole.merge.shape) for offset in offsets])


def multislerp(whole: Whole) -> Expected:
    """Return the exponential of the weighted logarithms of the models' directions, at their weighted mean."""
    weights, eps = torch.tensor(whole.merge.each("weight"), dtype=torch.float64), whole.merge.shared["eps"]
    vectors = [one.double() for one in whole.differences]
    if len(vectors) == 1:
        return whole.sum(vectors)
    if whole.merge.shared["normalize_weights"]:
        weights = weights / weights.sum()
    norms = torch.stack([vector.norm() for vector in vectors])
    units = [vector / (norm + eps) for vector, norm in zip(vectors, norms, strict=True)]
    mean = total(unit * weight for unit, weight in zip(units, weights, strict=True))
    if mean.norm() < eps:
        return whole.sum([vector * weight for vector, weight in zip(vectors, weights, strict=True)])
    mean = mean / mean.norm()
    logs = [(unit - (unit * mean).sum() * mean) * weight for unit, weight in zip(units, weights, strict=True)]
    length = total(logs).norm() + eps
    result = (mean * torch.cos(length) + total(logs) * torch.sin(length) / length) * (norms @ weights)
    return whole.expected(result, _sizes(vectors), WIDER[whole.merge.dtype])


def karcher(whole: Whole) -> Expected:
    """Return the Karcher mean of the models' directions, found by following the mean of the logarithms."""
    tol, vectors = whole.merge.shared["tol"], [one.double() for one in whole.differences]
    norms = [float(vector.norm()) for vector in vectors]
    units = [vector / norm for vector, norm in zip(vectors, norms, strict=True) if norm > tol]
    if len(vectors) == 1:
        return whole.sum(vectors)
    mean = _mean(units, whole.merge.shared["max_iter"], tol) if units else torch.zeros_like(vectors[0])
    return whole.expected(mean * float(np.mean(norms)), _sizes(vectors), WIDER[whole.merge.dtype])


def _sizes(vectors: Sequence[Tensor]) -> Tensor:
    return total(vector.abs() for vector in vectors)


def _mean(units: Sequence[Tensor], steps: int, tol: float) -> Tensor:
    mean = _normalized(torch.stack(list(units)).mean(dim=0), units[0], tol)
    for _ in range(steps):
        tangent = torch.stack([_log(mean, unit, tol) for unit in units]).mean(dim=0)
        if (length := tangent.norm()) < tol:
            break
        mean = _normalized(mean * torch.cos(length) + tangent * torch.sin(length) / length, mean, tol)
    return mean


def _normalized(vector: Tensor, fallback: Tensor, tol: float) -> Tensor:
    return fallback if vector.norm() < tol else vector / vector.norm()


def _log(at: Tensor, unit: Tensor, tol: float) -> Tensor:
    """Return the tangent at a point of the sphere that leads to another one; zero to one that is nearer than `tol`."""
    dot = (at * unit).sum().clamp(-1, 1)
    angle = torch.acos(dot)
    return torch.zeros_like(at) if angle < tol else (unit - dot * at) * angle / torch.sin(angle)
