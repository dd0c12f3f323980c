"""Rotary frequencies of every kind that a `ModelSpec` can hold."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mconv.spec import Rope


def inverse_frequencies(rope: Rope, *, kv_channels: int) -> Float[Tensor, "half"]:
    """Return radians per position of each pair of channels, fp32, by the operations of transformers.

    megatron-core's own `rope_scaling` fixes llama3's other three numbers at 1, 4 and 8192; here all four count.
    """
    base = 1.0 / (rope.base ** (torch.arange(0, kv_channels, 2, dtype=torch.float32, device="cpu") / kv_channels))
    if rope.kind == "linear":
        return base / rope.factor
    return _llama3(base, rope) if rope.kind == "llama3" else base


def _llama3(base: Float[Tensor, "half"], rope: Rope) -> Float[Tensor, "half"]:
    """Stretch long wavelengths by `factor`, leave short ones, and go smoothly between (LLaMA 3.1)."""
    context, low, high = rope.original_max_position_embeddings, rope.low_freq_factor, rope.high_freq_factor
    wavelength = 2 * math.pi / base
    stretched = torch.where(wavelength > context / low, base / rope.factor, base)
    smooth = (context / wavelength - low) / (high - low)
    between = (1 - smooth) * stretched / rope.factor + smooth * stretched
    medium = ~(wavelength < context / high) & ~(wavelength > context / low)
    return torch.where(medium, between, stretched)
