"""Buffers that a worker uses again and again while it reads and writes."""

from dataclasses import dataclass, field
from math import prod

import torch


@dataclass(slots=True)
class Scratch:
    """Buffers of one worker, used again for every slab: fresh memory costs more than what is done with it."""

    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    parts: "dict[str, Scratch]" = field(default_factory=dict)

    def apart(self, part: str) -> "Scratch":
        """Return the buffers of a part of the work, none of which is one of these."""
        return self.parts.setdefault(part, Scratch())

    def take(self, use: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialised contiguous tensor; it is valid until the next `take` for the same use."""
        nbytes = prod(shape) * dtype.itemsize
        if use not in self.buffers or self.buffers[use].numel() < nbytes:
            self.buffers[use] = torch.empty(nbytes, dtype=torch.uint8)
        return self.buffers[use][:nbytes].view(dtype).view(shape)

    def packed(self, use: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor itself if it is contiguous, else a copy that is."""
        if tensor.is_contiguous():
            return tensor
        return self.take(use, tuple(tensor.shape), tensor.dtype).copy_(tensor)

    def cast(self, use: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
        """Return the tensor itself if it has the dtype, else a copy that has."""
        if dtype is None or tensor.dtype == dtype:
            return tensor
        return self.take(use, tuple(tensor.shape), dtype).copy_(tensor)
