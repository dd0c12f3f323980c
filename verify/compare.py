"""Two sets of logits: how far apart, where, and whether that is close enough."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 64
"""Positions compared at once: a vocabulary of 128k in double precision is large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What passes. The mean is the ancestor's documented gate; `relative_max` is ours, meaningful only in fp32."""

    mean_abs_error: float
    relative_max: float | None


LIMITS = {
    "fp32": Limits(mean_abs_error=0.01, relative_max=1e-4),
    "bf16": Limits(mean_abs_error=0.1, relative_max=None),
    "fp16": Limits(mean_abs_error=0.1, relative_max=None),
}
"""By the dtype of the arithmetic. Source: Megatron-LLM's getting-started guide (0.01 and 0.1); 1e-4 is some twenty times
the difference that another order of summation makes in fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Logits of a candidate against a reference, over all positions and the true vocabulary."""

    max_abs_error: float
    mean_abs_error: float
    scale: float
    """Root mean square of the reference's logits."""
    relative_max: float
    """max_abs_error / scale."""
    kl: float
    """Mean over positions of KL(reference || candidate), in nats."""
    kl_max: float
    argmax_agreement: float
    """Share of positions at which both models rank the same token first."""
    worst: dict[str, int]
    """Row, position and token of the largest error."""
    error_by_position: list[float]
    """Largest error in each of up to 16 equal runs of positions."""
    finite: bool


def compare(reference: Float[Tensor, "b s v"], candidate: Float[Tensor, "b s v"]) -> Comparison:
    """Compare two tensors of logits [b s v] of the same tokens, in double precision, a few positions at a time."""
    length = reference.shape[1]
    total, square, kl_sum, agree, kl_max = 0.0, 0.0, 0.0, 0, 0.0
    peaks = torch.zeros(reference.shape[:2], dtype=torch.float64)
    where = torch.zeros(reference.shape[:2], dtype=torch.int64)
    for at in range(0, length, CHUNK):
        a, b = reference[:, at : at + CHUNK].double(), candidate[:, at : at + CHUNK].double()
        error = (a - b).abs()
        peaks[:, at : at + CHUNK], where[:, at : at + CHUNK] = error.max(dim=-1)
        total += float(error.sum())
        square += float((a * a).sum())
        p, q = a.log_softmax(dim=-1), b.log_softmax(dim=-1)
        kl = (p.exp() * (p - q)).sum(dim=-1).clamp(min=0.0)
        kl_sum, kl_max = kl_sum + float(kl.sum()), max(kl_max, float(kl.max()))
        agree += int((a.argmax(dim=-1) == b.argmax(dim=-1)).sum())
    row, position = divmod(int(peaks.argmax()), length)
    worst, scale = float(peaks.max()), (square / reference.numel()) ** 0.5
    return Comparison(
        max_abs_error=worst,
        mean_abs_error=total / reference.numel(),
        scale=scale,
        relative_max=worst / max(scale, 1e-30),
        kl=kl_sum / peaks.numel(),
        kl_max=kl_max,
        argmax_agreement=agree / peaks.numel(),
        worst={"row": row, "position": position, "token": int(where[row, position])},
        error_by_position=[float(part.max()) for part in peaks.max(dim=0).values.chunk(16)],
        finite=bool(torch.isfinite(reference).all() and torch.isfinite(candidate).all()),
    )


def failures(found: Comparison, limits: Limits) -> list[str]:
    """Why the comparison does not pass; empty if it does. A NaN passes nothing."""
    out = []
    if not found.finite:
        out.append("the logits hold NaN or infinity")
    if not found.mean_abs_error < limits.mean_abs_error:
        out.append(f"mean absolute error {found.mean_abs_error:.3g} is not below {limits.mean_abs_error:g}")
    if limits.relative_max is not None and not found.relative_max <= limits.relative_max:
        out.append(f"max error / scale {found.relative_max:.3g} is above {limits.relative_max:g}")
    return out
