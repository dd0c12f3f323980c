"""Parts of a tensor that are zero on one side: the key's bias only, or one tensor-parallel rank's share."""

from dataclasses import dataclass

import torch

from mconv.verify.diagnosis.pair import Hit, TensorPair

SHARES = range(2, 17)
"""Numbers of ranks whose shares are tried."""
Grid = tuple[torch.Tensor, ...]
"""Indices along each axis."""


@dataclass(frozen=True, slots=True, eq=False)
class Clear:
    """Sets elements to zero where the indices along all axes meet."""

    grid: Grid

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        out = tensor.clone()
        out[torch.meshgrid(*self.grid, indexing="ij")] = 0
        return out


def part_dropped(pair: TensorPair) -> Hit | None:
    """Return the fault if a part of b is zero where a has values: slots of each group, half an MLP, or a rank's share."""
    found = _part(pair, pair.b)
    if found is None:
        return None
    where, _ = found
    return Hit("bias-dropped" if _bias(pair) else "zeroed", f"{where} is zero where a has values", None)


def part_added(pair: TensorPair) -> Hit | None:
    """Return the fault if b has values in a part of a bias that is zero in a: all, some slots, a half, or a share."""
    if not _bias(pair) or pair.a.shape != pair.b.shape:
        return None
    if not pair.a.count_nonzero():
        return Hit("bias-added", "the bias is not zero, as a's is", torch.zeros_like)
    found = _part(pair, pair.a)
    return None if found is None else Hit("bias-added", f"{found[0]} is not zero, as a's is", Clear(found[1]))


def _bias(pair: TensorPair) -> bool:
    return pair.difference.tensor.endswith(".bias")


def _part(pair: TensorPair, zero: torch.Tensor) -> tuple[str, Grid] | None:
    """Return the part of a tensor that holds all differences and is `zero` throughout, in words and as indices."""
    if pair.x.shape != pair.y.shape:
        return None
    apart = pair.x != pair.y
    if bool(zero[apart].count_nonzero()):
        return None
    grid = tuple(
        _along(apart, axis) if name in ("s", "p", pair.cut) else torch.arange(apart.shape[axis])
        for axis, name in enumerate(pair.axes.names)
    )
    part = zero
    for axis, where in enumerate(grid):
        part = part.index_select(axis, where)
    if part.numel() == zero.numel() or part.count_nonzero():
        return None
    partial = [axis for axis in range(apart.ndim) if len(grid[axis]) < apart.shape[axis]]
    words = [_words(pair, axis, grid[axis].tolist()) for axis in partial]
    named = [word for word in words if word]
    if len(named) < len(words):
        return None
    what = "the bias" if _bias(pair) else "it"
    return " of ".join([*named, what]), grid


def _along(apart: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the indices along an axis at which anything differs."""
    others = [other for other in range(apart.ndim) if other != axis]
    return (apart.any(dim=others) if others else apart).nonzero().flatten()


def _words(pair: TensorPair, axis: int, where: list[int]) -> str | None:
    """Return a name for some indices along an axis; None for a part that no program would forget."""
    name, size = pair.axes.names[axis], pair.x.shape[axis]
    if name == "s" and "q" not in pair.axes.names:
        queries = list(range(size - 2))
        kinds = {"q": queries, "k": [size - 2], "v": [size - 1]}
        named = [kind for kind, slots in kinds.items() if set(slots) <= set(where)]
        whole = sum(len(kinds[kind]) for kind in named) == len(where)
        return f"the part of {' and '.join(named)}" if whole else None
    if name == "p":
        return f"the {('gate', 'up')[where[0]]} half"
    return _share(where, size) if name == pair.cut else None


def _share(where: list[int], size: int) -> str | None:
    """Return which rank's share a run of indices is, along an axis that tensor parallelism cuts."""
    first, width = where[0], len(where)
    ranks = size // width
    if where != list(range(first, first + width)) or size % width or ranks not in SHARES or first % width:
        return None
    return f"the share of rank {first // width} of {ranks}"
