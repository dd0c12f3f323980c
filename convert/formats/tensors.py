"""Tensors on disk: located without being loaded, promised before they are written."""

import mmap
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class Located:
    """A tensor on disk: file, where its bytes start, dtype, shape. It is contiguous."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def load(self) -> torch.Tensor:
        """A view on the mapped file: pages are read when touched, and a write would go to a private copy."""
        if self.nbytes == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        status = self.path.stat()
        mapped = _mapped(self.path.absolute(), status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        return torch.frombuffer(mapped, dtype=self.dtype, count=prod(self.shape), offset=self.offset).view(self.shape)


@dataclass(frozen=True, slots=True)
class Joined(Located):
    """A tensor whose elements lie in several places, one run after another: `path` and `offset` are of the first."""

    parts: tuple[Located, ...]

    def load(self) -> torch.Tensor:
        """A copy: the runs end to end."""
        return torch.cat([part.load().view(-1) for part in self.parts]).view(self.shape)


@lru_cache(maxsize=64)
def _mapped(path: Path, *identity: int) -> mmap.mmap:
    """`identity` tells a file from another that has taken its name."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def forget() -> None:
    """Let go of all mappings that no tensor uses: what was read of them no longer counts as this process's memory."""
    _mapped.cache_clear()


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor that a format is about to write."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor, without a copy."""
    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")
