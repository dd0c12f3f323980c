"""The rules by which others judge a conversion, as functions of real logits and weights. None of them is ours.

- Megatron-LLM, the ancestor, documents a mean absolute error of all logits below 0.01 in fp32 and 0.1 in 16 bits
  (`verify_correctness.py` prints it, `docs/guide/getting_started.md` says what is good); it asserts equal shapes.
- Megatron-Bridge's `compare.py` wants a cosine of 0.99 between the logits of one prompt's last position, and prints that
  it cannot compare other shapes; its round trip wants exported weights within atol 1e-1, rtol 1e-5 of the original's.
- mbridge's example of exporting asserts equal shapes and sums that are the same to 1e-5.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

PROMPT = 8
"""Tokens of the one prompt that is looked at."""
MEAN = {"fp32": 0.01, "bf16": 0.1}


@dataclass(frozen=True, slots=True)
class Seen:
    """What a rule makes of a candidate: whether it objects, and the number that it looked at (None: another shape)."""

    caught: bool
    number: float | None


def mean_error(reference: torch.Tensor, candidate: torch.Tensor, *, dtype: str) -> Seen:
    """The ancestor's rule for logits [b s v] of arithmetic in `dtype`."""
    if reference.shape != candidate.shape:
        return Seen(True, None)
    found = float((reference.double() - candidate.double()).abs().mean())
    return Seen(not found < MEAN[dtype], found)


def last_cosine(reference: torch.Tensor, candidate: torch.Tensor) -> Seen:
    """Megatron-Bridge's rule for the logits [s v] of one prompt."""
    if reference.shape != candidate.shape:
        return Seen(False, None)
    found = float(torch.cosine_similarity(reference[-1].double(), candidate[-1].double(), dim=-1))
    return Seen(not found >= 0.99, found)


def weights_close(reference: Mapping[str, torch.Tensor], exported: Mapping[str, torch.Tensor]) -> Seen:
    """Megatron-Bridge's rule for weights: each that is exported; one that is not exported is not missed."""
    if any(name not in reference or reference[name].shape != x.shape for name, x in exported.items()):
        return Seen(True, None)
    close = [torch.allclose(x, reference[name], atol=1e-1, rtol=1e-5) for name, x in exported.items()]
    apart = [float((x.double() - reference[name].double()).abs().max()) for name, x in exported.items()]
    return Seen(not all(close), max(apart))


def sums_close(reference: Mapping[str, torch.Tensor], exported: Mapping[str, torch.Tensor]) -> Seen:
    """mbridge's rule: the sum of each weight that is exported, in the weight's own dtype."""
    if any(name not in reference or reference[name].shape != x.shape for name, x in exported.items()):
        return Seen(True, None)
    apart = [abs(float(x.sum()) - float(reference[name].sum())) for name, x in exported.items()]
    return Seen(not max(apart) <= 1e-5, max(apart))
