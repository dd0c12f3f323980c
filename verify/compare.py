"""Two sets of logits: how far apart, where, and whether that is close enough."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 64
"""Positions compared at once: a vocabulary of 128k in double precision is large."""
Pair = tuple[Float[Tensor, "b c v"], Float[Tensor, "b c v"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What passes, by the dtype of the arithmetic. `docs/verify.md` has the measurements behind each number."""

    mean_abs_error: float
    """The ancestor's gate (Megatron-LLM's getting-started guide), for logits of the usual size."""
    times_noise: float
    """How many times the model's own noise floor the error may be; both its largest and its root mean square."""
    relative_max: float
    """Largest error over scale that passes however low the noise floor is."""
    relative_rms: float
    """Root mean square error over scale that passes however low the noise floor is."""


LIMITS = {
    "fp32": Limits(mean_abs_error=0.01, times_noise=5.0, relative_max=2e-5, relative_rms=2e-6),
    "bf16": Limits(mean_abs_error=0.1, times_noise=3.0, relative_max=0.02, relative_rms=4e-3),
    "fp16": Limits(mean_abs_error=0.1, times_noise=3.0, relative_max=0.003, relative_rms=5e-4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Logits of a candidate against a reference, over all positions and the true vocabulary."""

    max_abs_error: float
    mean_abs_error: float
    rms_error: float
    scale: float
    """Root mean square of the reference's logits."""
    relative_max: float
    """max_abs_error / scale."""
    relative_rms: float
    """rms_error / scale."""
    kl: float
    """Mean over positions of KL(reference || candidate), in nats."""
    kl_max: float
    argmax_agreement: float
    """Share of positions at which both models rank the same token first."""
    worst: dict[str, int]
    """Row, position and token of the largest error."""
    error_by_position: list[float]
    """Largest error in each of up to 16 equal runs of positions."""
    loss: dict[str, float]
    """Mean cross entropy of the next token over the true vocabulary, of both: the same terms for both."""
    finite: bool


@dataclass(slots=True)
class Tally:
    """A comparison under way: chunks of positions are added in order."""

    tokens: Int[Tensor, "b s"]
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("error", "error2", "scale2", "kl"), 0.0))
    losses: list[float] = field(default_factory=lambda: [0.0, 0.0])
    count: int = 0
    agree: int = 0
    kl_max: float = 0.0
    finite: bool = True
    peaks: list[Tensor] = field(default_factory=list)
    where: list[Tensor] = field(default_factory=list)

    def add(self, reference: Float[Tensor, "b c v"], candidate: Float[Tensor, "b c v"], *, at: int) -> None:
        """The logits of positions `at` and the following, of both, in double precision."""
        a, b = reference.double(), candidate.double()
        error = (a - b).abs()
        peaks, where = error.max(dim=-1)
        self.peaks.append(peaks)
        self.where.append(where)
        self.count += a.numel()
        self.finite = self.finite and bool(torch.isfinite(a).all() and torch.isfinite(b).all())
        self.agree += int((a.argmax(dim=-1) == b.argmax(dim=-1)).sum())
        p, q = a.log_softmax(dim=-1), b.log_softmax(dim=-1)
        kl = (p.exp() * (p - q)).sum(dim=-1).clamp(min=0.0)
        self.kl_max = float(kl.max().clamp(min=self.kl_max))  # a NaN stays one
        found = (error.sum(), error.square().sum(), a.square().sum(), kl.sum())
        for name, value in zip(self.sums, found, strict=True):
            self.sums[name] += float(value)
        labels = self.tokens[:, at + 1 : at + 1 + a.shape[1], None].to(a.device)
        for side, scores in enumerate((p, q)):
            self.losses[side] -= float(scores[:, : labels.shape[1]].gather(-1, labels).sum())

    def close(self) -> Comparison:
        """The comparison of all that was added."""
        peaks, where = torch.cat(self.peaks, dim=1), torch.cat(self.where, dim=1)
        row, position = divmod(int(peaks.nan_to_num(nan=torch.inf).argmax()), peaks.shape[1])
        worst = float(peaks[row, position])
        scale, rms = (self.sums["scale2"] / self.count) ** 0.5, (self.sums["error2"] / self.count) ** 0.5
        predicted = max(1, peaks.shape[0] * (peaks.shape[1] - 1))
        loss = dict(zip(("reference", "candidate"), (total / predicted for total in self.losses), strict=True))
        return Comparison(
            max_abs_error=worst,
            mean_abs_error=self.sums["error"] / self.count,
            rms_error=rms,
            scale=scale,
            relative_max=worst / max(scale, 1e-30),
            relative_rms=rms / max(scale, 1e-30),
            kl=self.sums["kl"] / peaks.numel(),
            kl_max=self.kl_max,
            argmax_agreement=self.agree / peaks.numel(),
            worst={"row": row, "position": position, "token": int(where[row, position])},
            error_by_position=[float(part.max()) for part in peaks.max(dim=0).values.chunk(16)],
            loss={**loss, "difference": loss["candidate"] - loss["reference"]},
            finite=self.finite,
        )


def compare(pairs: Iterator[Pair], *, tokens: Int[Tensor, "b s"]) -> Comparison:
    """Compare (reference, candidate) logits [b c v] of the same tokens, given chunk after chunk of positions."""
    tally, at = Tally(tokens), 0
    for reference, candidate in pairs:
        tally.add(reference, candidate, at=at)
        at += reference.shape[1]
    return tally.close()


def failures(found: Comparison, limits: Limits, *, noise: Comparison) -> list[str]:
    """Why the comparison does not pass; empty if it does. A NaN passes nothing."""
    out = []
    if not found.finite:
        out.append("the logits hold NaN or infinity")
    mean = allowed("mean_abs_error", limits, noise=noise)
    if not found.mean_abs_error < mean:
        out.append(f"mean absolute error {found.mean_abs_error:.3g} is not below {mean:.3g}")
    for name, said in (("relative_max", "max"), ("relative_rms", "root mean square")):
        value, limit = getattr(found, name), allowed(name, limits, noise=noise)
        if not value <= limit:
            floor = getattr(noise, name)
            out.append(f"{said} error / scale {value:.3g} is above {limit:.3g} (the model's own noise: {floor:.3g})")
    return out


def allowed(name: str, limits: Limits, *, noise: Comparison) -> float:
    """How large `relative_max`, `relative_rms` or `mean_abs_error` may be for a model whose noise floor is known."""
    return max(getattr(limits, name), limits.times_noise * getattr(noise, name))
