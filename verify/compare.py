"""Comparison of two sets of logits: how far apart they are, where, and whether that is close enough."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 64
"""Positions whose logits are computed at once."""
BLOCK = 1 << 18
"""Logits that are compared at once: in double precision they stay in the processor's cache and need no new memory."""
NONFINITE = "the logits hold NaN or infinity"
LogitPair = tuple[Float[Tensor, "b c v"], Float[Tensor, "b c v"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Largest errors that pass in one dtype. `docs/verify.md` has the measurements behind each number."""

    mean_abs_error: float
    """Limit of Megatron-LLM's getting-started guide, for logits of the usual size."""
    times_noise: float
    """Multiple of the model's own noise floor that passes, for the largest error and the root mean square."""
    relative_max: float
    """Largest error over scale that passes even if the noise floor is lower."""
    relative_rms: float
    """Root mean square error over scale that passes even if the noise floor is lower."""


LIMITS = {
    "fp32": Limits(mean_abs_error=0.01, times_noise=5.0, relative_max=2e-5, relative_rms=2e-6),
    "bf16": Limits(mean_abs_error=0.1, times_noise=3.0, relative_max=0.02, relative_rms=4e-3),
    "fp16": Limits(mean_abs_error=0.1, times_noise=3.0, relative_max=0.003, relative_rms=5e-4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Distance of one set of logits from another, over all positions and the true vocabulary."""

    max_abs_error: float
    mean_abs_error: float
    rms_error: float
    scale: float
    """Root mean square of the reference's logits."""
    relative_max: float
    """`max_abs_error` / `scale`."""
    relative_rms: float
    """`rms_error` / `scale`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Errors):
    """Distance of a candidate's logits from the reference's, and both models' predictions of the next token."""

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
    """Mean cross entropy of the next token under each model, over the same positions and the true vocabulary."""
    finite: bool
    by_row: list[dict[str, Any]]
    """One entry for each row: the number of `positions` counted, `kl` and `loss`."""


def _errors(a: Float[Tensor, "r v"], b: Float[Tensor, "r v"]) -> tuple[Float[Tensor, "r 5"], Float[Tensor, "r v"]]:
    """Return, for each row in fp64, the largest error, its token and the sums of |error|, error^2 and a^2; and a - b."""
    apart = a - b
    far = apart.abs()
    peak, where = far.max(dim=-1)
    sums = (far.sum(dim=-1), torch.linalg.vecdot(apart, apart), torch.linalg.vecdot(a, a))
    return torch.stack([peak, where.double(), *sums], dim=-1), apart


def _tokens(
    a: Float[Tensor, "r v"], b: Float[Tensor, "r v"], apart: Float[Tensor, "r v"], labels: Int[Tensor, "r"]
) -> Float[Tensor, "r 4"]:
    """Return KL(a || b), whether both rank the same token first, and the loss of `labels` under each. Overwrites a, b."""
    scores = [side.gather(-1, labels[:, None])[:, 0] for side in (a, b)]
    (top, first), (other, second) = a.max(dim=-1), b.max(dim=-1)
    p, q = a.sub_(top[:, None]).exp_(), b.sub_(other[:, None]).exp_()
    mass = p.sum(dim=-1)
    whole = [top + mass.log(), other + q.sum(dim=-1).log()]  # log of the sum of exponentials
    kl = torch.linalg.vecdot(p, apart) / mass - (whole[0] - whole[1])
    losses = [total - score for total, score in zip(whole, scores, strict=True)]
    return torch.stack([kl.clamp(min=0.0), (first == second).double(), *losses], dim=-1)


def _blocks(pair: LogitPair) -> Iterator[LogitPair]:
    """Yield the positions of a chunk in blocks that fit the processor's cache in double precision."""
    a, b = (side.flatten(0, 1) for side in pair)
    rows = max(1, BLOCK // a.shape[-1])
    yield from zip(a.split(rows), b.split(rows), strict=True)


def _figures(pair: LogitPair, labels: Int[Tensor, "b c"] | None) -> Float[Tensor, "b c n"]:
    """Return the numbers of each position of a chunk: those of `_errors` and, with labels, those of `_tokens`."""
    out, at = [], 0
    for one, two in _blocks(pair):
        a, b = one.double(), two.double()
        errors, apart = _errors(a, b)
        if labels is None:
            out.append(errors)
        else:
            out.append(torch.cat([errors, _tokens(a, b, apart, labels.flatten()[at : at + len(a)])], dim=-1))
        at += len(a)
    return torch.cat(out).unflatten(0, pair[0].shape[:2])


def _summed(of: Float[Tensor, "b s n"], vocabulary: int) -> dict[str, float]:
    """Return the fields of `Errors` from the numbers of all positions."""
    count = of.shape[0] * of.shape[1] * vocabulary
    absolute, squares, scales = (float(x) / count for x in of[..., 2:5].sum(dim=(0, 1)))
    worst, rms, scale = float(of[..., 0].max()), squares**0.5, scales**0.5
    return {
        "max_abs_error": worst, "mean_abs_error": absolute, "rms_error": rms, "scale": scale,
        "relative_max": worst / max(scale, 1e-30), "relative_rms": rms / max(scale, 1e-30),
    }  # fmt: skip


def distance(pairs: Iterable[LogitPair]) -> Errors:
    """Return how far apart (reference, candidate) logits [b c v] are, given chunk after chunk of positions."""
    found, vocabulary = [], 0
    for pair in pairs:
        found.append(_figures(pair, None))
        vocabulary = pair[0].shape[-1]
    return Errors(**_summed(torch.cat(found, dim=1), vocabulary))


def compare(
    pairs: Iterable[LogitPair], *, tokens: Int[Tensor, "b s"], counted: Sequence[int] | None = None
) -> Comparison:
    """Return the comparison of (reference, candidate) logits [b c v] of the same tokens, given in chunks of positions.

    `counted`: number of positions of each row over which its own loss and KL are taken; default: all of them.
    """
    found, at, vocabulary = [], 0, 0
    following = torch.nn.functional.pad(tokens[:, 1:], (0, 1))  # the last position predicts nothing: left out below
    for pair in pairs:
        labels = following[:, at : at + pair[0].shape[1]].to(pair[0].device)
        found.append(_figures(pair, labels))
        vocabulary, at = pair[0].shape[-1], at + labels.shape[1]
    of = torch.cat(found, dim=1)
    peaks, kl = of[..., 0], of[..., 5]
    row, position = divmod(int(peaks.nan_to_num(nan=torch.inf).argmax()), peaks.shape[1])
    return Comparison(
        **_summed(of, vocabulary),
        kl=float(kl.mean()),
        kl_max=float(kl.max()),
        argmax_agreement=float(of[..., 6].mean()),
        worst={"row": row, "position": position, "token": int(of[row, position, 1])},
        error_by_position=[float(part.max()) for part in peaks.max(dim=0).values.chunk(16)],
        loss=_loss(of),
        finite=bool(of[..., 2].isfinite().all()),
        by_row=[
            {"positions": most, "kl": float(kl[n, :most].mean()), "loss": _loss(of[n : n + 1, :most])}
            for n, most in enumerate(counted or [tokens.shape[1]] * len(tokens))
        ],
    )


def _loss(of: Float[Tensor, "b s n"]) -> dict[str, float]:
    """Return the mean loss of both and their difference. The last position of a row predicts nothing and is left out."""
    reference, candidate = (of[:, :-1, 7:9].sum(dim=(0, 1)) / max(1, of[:, :-1, 7].numel())).tolist()
    return {"reference": reference, "candidate": candidate, "difference": candidate - reference}


def failures(found: Comparison, limits: Limits, *, noise: Errors) -> list[str]:
    """Return the reasons why a comparison does not pass, none if it does. A NaN never passes."""
    out = []
    if not found.finite:
        out.append(NONFINITE)
    mean = allowed("mean_abs_error", limits, noise=noise)
    if not found.mean_abs_error < mean:
        out.append(f"mean absolute error {found.mean_abs_error:.3g} is not below {mean:.3g}")
    for name, words in (("relative_max", "max"), ("relative_rms", "root mean square")):
        value, limit = getattr(found, name), allowed(name, limits, noise=noise)
        if not value <= limit:
            floor = getattr(noise, name)
            out.append(f"{words} error / scale {value:.3g} is above {limit:.3g} (the model's own noise: {floor:.3g})")
    return out


def allowed(name: str, limits: Limits, *, noise: Errors) -> float:
    """Return the limit of `relative_max`, `relative_rms` or `mean_abs_error` for a model with this noise floor."""
    return max(getattr(limits, name), limits.times_noise * getattr(noise, name))
