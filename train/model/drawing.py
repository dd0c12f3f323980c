"""Draw the tensors that `initial.py` describes; apart from it, since a plan does not need torch."""

from functools import lru_cache

import torch

from mconv.convert.formats.dtype import DType, in_torch


def constant(shape: tuple[int, ...], value: float, dtype: DType) -> torch.Tensor:
    """Return a tensor of one value."""
    return torch.full(shape, value, dtype=in_torch(dtype))


@lru_cache(maxsize=1)  # a tensor is read part by part
def normal(shape: tuple[int, ...], seed: int, std: float) -> torch.Tensor:
    """Return normal numbers around 0, the same each time."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.empty(shape, device="cpu").normal_(std=std, generator=generator)


def forget() -> None:
    """Let go of the tensor that was drawn last."""
    normal.cache_clear()
