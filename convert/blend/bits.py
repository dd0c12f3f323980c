"""Signs, zeros and masks by the bits of floating-point numbers: several times faster than by their values."""

import numpy as np
import torch
from torch import Tensor

SIGNED = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(values: Tensor) -> np.ndarray:
    """Return the bits of a contiguous tensor as signed integers, which share its memory: bit 15 of bf16 is the sign."""
    return values.view(SIGNED[values.element_size()]).numpy()


def zero(found: np.ndarray) -> np.ndarray:
    """Return where bits are those of 0.0 or -0.0."""
    return (found & np.iinfo(found.dtype).max) == 0


def keep(values: Tensor, mask: Tensor) -> Tensor:
    """Return a tensor, what a mask does not keep of it set to zero in place."""
    found = bits(values)
    np.multiply(found, mask.numpy(), out=found)
    return values


def same_sign(values: Tensor, total: Tensor) -> Tensor:
    """Return where values are not zero and have the sign of a total; one of zero counts as positive."""
    found, other = bits(values), bits(total)
    other = other * (other != np.iinfo(other.dtype).min)  # -0.0 -> 0.0
    return torch.from_numpy(((found ^ other) >= 0) & ~zero(found))


def where(mask: Tensor, number: Tensor) -> Tensor:
    """Return a number where a mask is set, zero elsewhere."""
    return torch.from_numpy(mask.numpy() * bits(number.reshape(1))).view(number.dtype)


def ones_for_zeros(values: Tensor) -> Tensor:
    """Return a tensor, each zero in it replaced by one in place."""
    found = bits(values)
    empty = zero(found)
    found *= ~empty
    found |= empty * bits(torch.ones(1, dtype=values.dtype))
    return values
