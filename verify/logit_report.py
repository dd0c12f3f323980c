"""The parts of a report that a comparison of logits fills in."""

from dataclasses import asdict
from typing import Any

import torch

from mconv.convert.checkpoint.model import Checkpoint
from mconv.convert.formats.mapped import forget
from mconv.convert.sources.source import dims_of, dtype_of, slab_boxes
from mconv.verify.compare import CHUNK, Comparison, Errors, Limits, allowed
from mconv.verify.models import RunOptions, Scores
from mconv.verify.models.common import rounded
from mconv.verify.probes import Probe
from mconv.verify.request import Request


def numbers(found: Comparison, limits: Limits, noise: Errors, probe: Probe) -> dict[str, Any]:
    """Return the numbers of a comparison, with their limits and the noise floor."""
    return {
        **asdict(found),
        "by_row": [{"row": name, **one} for name, one in zip(probe.rows, found.by_row, strict=True)],
        "limits": {
            **{n: allowed(n, limits, noise=noise) for n in ("mean_abs_error", "relative_max", "relative_rms")},
            "times_noise": limits.times_noise,
        },
        "noise": {name: getattr(noise, name) for name in ("max_abs_error", "relative_max", "relative_rms", "scale")},
    }


def names(a: Checkpoint, b: Checkpoint, *, loaded_by: tuple[str, str]) -> dict[str, Any]:
    """Return the reference and the candidate by name, format and the program that loaded each."""
    sides = {"reference": (a, loaded_by[0]), "candidate": (b, loaded_by[1])}
    return {side: {"name": c.name, "format": c.format, "loaded_by": by} for side, (c, by) in sides.items()}


def setting(request: Request, probe: Probe, options: RunOptions) -> dict[str, Any]:
    """Return how a comparison was made: layout, arithmetic, device and probe."""
    return {
        **{name: getattr(request, name) for name in ("tp", "pp", "sequence_parallel", "dtype", "seed")},
        "rounded_to": " and ".join(str(dtype).removeprefix("torch.") for dtype in options.narrow) or None,
        "streamed": options.streamed,
        "device": options.device.type,
        "batch": probe.tokens.shape[0],
        "length": probe.tokens.shape[1],
        "reach": probe.reach,
        "rows": list(probe.rows),
    }


def vocabulary_failures(a: Checkpoint, b: Checkpoint, *, narrow: tuple[torch.dtype, ...]) -> list[str]:
    """Return a sentence for embedding rows that differ, and for a vocabulary of another size."""
    rows = embedding_rows(a, b, narrow=narrow)
    out = [f"{len(rows)} rows of the embedding differ, the first is of token {rows[0]}"] if rows else []
    more = b.spec.vocab_size - a.spec.vocab_size
    if more > 0:  # the true vocabulary is the model's: another row is padding
        out.append(f"{b.name} has {more} tokens more than {a.name}'s {a.spec.vocab_size}: rows of padding that leaked")
    if more < 0:
        out.append(f"{b.name} has {-more} tokens less than {a.name}'s {a.spec.vocab_size}")
    return out


def padding(scores: Scores, probe: Probe, *, true: int) -> dict[str, Any] | None:
    """Return the loss that Megatron prints, over its padded vocabulary too; None where there is no padding."""
    whole = getattr(scores, "padded", None)
    if whole is None or whole.shape[-1] == true:
        return None
    labels, total = probe.tokens[:, 1:, None].to(whole.device), 0.0
    for part, wanted in zip(whole[:, :-1].split(CHUNK, dim=1), labels.split(CHUNK, dim=1), strict=True):
        total -= float(part.double().log_softmax(-1).gather(-1, wanted).sum())
    return {"rows": whole.shape[-1] - true, "loss_over_all": total / max(1, labels.numel())}


def layer_errors(a: Scores, b: Scores) -> list[dict[str, Any]]:
    """Return the rms error over scale of the hidden states behind each layer, each model on its own states."""
    return [
        {"layer": name, "error": float(_rms(reference - b.layers[name]) / _rms(reference).clamp(min=1e-30))}
        for name, reference in a.layers.items()
        if name in b.layers
    ]


def _rms(values: torch.Tensor) -> torch.Tensor:
    return values.square().mean().sqrt()


def embedding_rows(a: Checkpoint, b: Checkpoint, *, narrow: tuple[torch.dtype, ...] = ()) -> list[int]:
    """Return the tokens whose input embeddings differ. A probe reads few rows of the embedding; this compares all.

    The limit is 1e-4 of the row's norm where the dtypes are the same or both were rounded, else a rounding to 8 bits.
    """
    first, second = a.source, b.source
    logical = a.family.embedding
    limit = 1e-4 if narrow or dtype_of(first, logical) == dtype_of(second, logical) else 2**-7
    rows = min(dims_of(first, logical)[0], dims_of(second, logical)[0])
    found = []
    for box in slab_boxes((rows, *dims_of(first, logical)[1:]), 1 << 22):
        one, two = (rounded(side.pull(logical, box), narrow).float() for side in (first, second))
        off = ~((one - two).norm(dim=-1) <= limit * one.norm(dim=-1))  # a NaN is off, too
        found += [box[0][0] + int(i) for i in off.nonzero()]
    forget()
    return found
