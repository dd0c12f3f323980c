"""Parts of a tensor that are zero in one of the two: the key's bias alone, one tensor-parallel rank's share."""

from dataclasses import dataclass

import torch

from mconv.verify.guesses.pair import Hit, Pair

SHARES = range(2, 17)
"""Numbers of ranks whose shares are looked for."""
Grid = tuple[torch.Tensor, ...]
"""Indices along each axis."""


@dataclass(frozen=True, slots=True, eq=False)
class Clear:
    """Zero where the indices along all axes meet."""

    grid: Grid

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        out = tensor.clone()
        out[torch.meshgrid(*self.grid, indexing="ij")] = 0
        return out


def part_dropped(pair: Pair) -> Hit | None:
    """Nothing, in b, where a has values, in some slots of each query group, half of a gated MLP, or a rank's share."""
    found = _part(pair, pair.b)
    if found is None:
        return None
    where, _ = found
    return Hit("bias-dropped" if _bias(pair) else "zeroed", f"{where} is zero where a has values", None)


def part_added(pair: Pair) -> Hit | None:
    """Values, in b, in a part of a bias that is zero in a: all of it, some slots, one half, or a rank's share."""
    if not _bias(pair) or pair.a.shape != pair.b.shape:
        return None
    if not pair.a.count_nonzero():
        return Hit("bias-added", "the bias is not zero, as a's is", torch.zeros_like)
    found = _part(pair, pair.a)
    return None if found is None else Hit("bias-added", f"{found[0]} is not zero, as a's is", Clear(found[1]))


def _bias(pair: Pair) -> bool:
    return pair.difference.tensor.endswith(".bias")


def _part(pair: Pair, zero: torch.Tensor) -> tuple[str, Grid] | None:
    """The part of a tensor that all differences lie in and that is `zero` throughout: in words, and where it is."""
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
    told = [word for word in words if word]
    if len(told) < len(words):
        return None
    what = "the bias" if _bias(pair) else "it"
    return " of ".join([*told, what]), grid


def _along(apart: torch.Tensor, axis: int) -> torch.Tensor:
    """The indices along an axis at which anything differs."""
    others = [other for other in range(apart.ndim) if other != axis]
    return (apart.any(dim=others) if others else apart).nonzero().flatten()


def _words(pair: Pair, axis: int, where: list[int]) -> str | None:
    """What some indices along an axis are; None: nothing that a program would forget."""
    name, size = pair.axes.names[axis], pair.x.shape[axis]
    if name == "s" and "q" not in pair.axes.names:
        queries = list(range(size - 2))
        kinds = {"q": queries, "k": [size - 2], "v": [size - 1]}
        told = [kind for kind, slots in kinds.items() if set(slots) <= set(where)]
        whole = sum(len(kinds[kind]) for kind in told) == len(where)
        return f"the part of {' and '.join(told)}" if whole else None
    if name == "p":
        return f"the {('gate', 'up')[where[0]]} half"
    return _share(where, size) if name == pair.cut else None


def _share(where: list[int], size: int) -> str | None:
    """Which rank's share of an axis that tensor parallelism cuts a run of indices is."""
    first, width = where[0], len(where)
    ranks = size // width
    if where != list(range(first, first + width)) or size % width or ranks not in SHARES or first % width:
        return None
    return f"the share of rank {first // width} of {ranks}"
