"""Stored tensors in memory: views on mapped files. Of what reads formats, only this needs torch."""

import mmap
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from pathlib import Path

import torch

from mconv.convert.formats.dtype import in_torch
from mconv.convert.formats.tensors import Located


def load(where: Located) -> torch.Tensor:
    """Return a view on the mapped file: pages are read when touched, and a write would go to a private copy."""
    dtype = in_torch(where.dtype)
    if where.nbytes == 0:
        return torch.empty(where.shape, dtype=dtype)
    status = where.path.stat()
    mapped = _mapped(where.path.absolute(), status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    return torch.frombuffer(mapped, dtype=dtype, count=prod(where.shape), offset=where.offset).view(where.shape)


def joined(parts: Sequence[Located], shape: tuple[int, ...]) -> torch.Tensor:
    """Return a copy of runs of elements, end to end."""
    return torch.cat([part.load().view(-1) for part in parts]).view(shape)


@lru_cache(maxsize=64)
def _mapped(path: Path, *identity: int) -> mmap.mmap:
    """`identity` tells a file from another that has taken its name."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def forget() -> None:
    """Let go of all mappings that no tensor uses: what was read of them no longer counts as this process's memory."""
    _mapped.cache_clear()


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor, without a copy."""
    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")
