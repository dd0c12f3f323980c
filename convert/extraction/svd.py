"""The leading singular triplets of a matrix: of a small one from its whole SVD, of a large one by subspace iteration.

Subspace iteration (Halko, Martinsson, Tropp 2011) starts from a Gaussian matrix drawn from a seed, so its result is the
same at every run. A matrix whose rank is at most the rank asked for is found to rounding by either way.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

EXACT = 1024
"""Largest smaller side of a matrix whose whole SVD is computed."""
OVERSAMPLE = 16
"""Directions that are followed beyond those asked for."""
PASSES = 6
"""How often the subspace goes through the matrix and back."""

WORK = 96 << 20
"""Bytes of slabs and rows in fp64, and of what linear algebra keeps for itself, whatever the matrix."""


@dataclass(frozen=True, slots=True)
class Leading:
    """Leading singular values, the largest first, and their vectors."""

    left: Float[Tensor, "m k"]
    values: Float[Tensor, " k"]
    right: Float[Tensor, "k n"]


def exact(shape: tuple[int, ...]) -> bool:
    """Return whether the whole SVD of a matrix of this shape is computed."""
    return min(shape) <= EXACT


def precision(shape: tuple[int, ...]) -> torch.dtype:
    """Return the dtype that a matrix of this shape is decomposed in."""
    return torch.float64 if exact(shape) else torch.float32


def leading(matrix: Float[Tensor, "m n"], count: int, *, seed: int = 0) -> Leading:
    """Return the `count` leading singular triplets of a matrix, in fp64."""
    if exact(matrix.shape):
        whole = torch.linalg.svd(matrix.double(), full_matrices=False)
        return _cut(whole.U, whole.S, whole.Vh, count)
    generator = torch.Generator().manual_seed(seed)
    width = min(count + OVERSAMPLE, *matrix.shape)
    start = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype)
    basis = _orthonormal(matrix @ start)
    for _ in range(PASSES):
        basis = _orthonormal(matrix @ _orthonormal(matrix.t() @ basis))
    left, values, right = torch.linalg.svd((basis.t() @ matrix).double(), full_matrices=False)
    return _cut(basis.double() @ left, values, right, count)


def memory(shape: tuple[int, ...], count: int) -> int:
    """Return the bytes that `leading` needs for a matrix of this shape, the matrix itself among them."""
    m, n = shape
    if exact(shape):
        k = min(m, n)
        return WORK + 8 * (3 * m * n + k * (m + n) + 6 * k * k)
    width = min(count + OVERSAMPLE, m, n)
    return WORK + 4 * m * n + 8 * 3 * width * (m + n)


def _orthonormal(matrix: Float[Tensor, "m k"]) -> Float[Tensor, "m k"]:
    return torch.linalg.qr(matrix).Q


def _cut(left: Tensor, values: Tensor, right: Tensor, count: int) -> Leading:
    return Leading(left[:, :count], values[:count], right[:count])
