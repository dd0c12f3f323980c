"""Differing elements of a logical tensor: how many, how far apart, where, and in which stored pieces."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mconv.convert.sources.checks import bits, finite
from mconv.convert.sources.source import Source
from mconv.convert.sources.stored import primary
from mconv.convert.spelling.table import Family, Logical
from mconv.shard.axes import Box, intersect, within
from mconv.shard.cut import can_share
from mconv.shard.layout import padded_vocab
from mconv.shard.pattern import piece
from mconv.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One logical tensor that differs between two checkpoints a and b."""

    tensor: str
    how: str
    """`missing`, `shape` or `bits`. If only the vocabulary's size differs (`shape`), the common rows are compared."""
    a: str
    b: str
    """Content of each side: a shape by named axes, or the value at the largest difference."""
    elements: int = 0
    """Number of elements that differ in any bit, after rounding if the dtypes differ."""
    of: int = 0
    """Number of elements that were compared."""
    largest: float | None = None
    """Largest difference of two finite values."""
    at: dict[str, int] = field(default_factory=dict)
    """Index of the largest difference, by axis."""
    nonfinite: int = 0
    """Number of differing elements that are NaN or infinite on one side."""
    dtypes: tuple[str, str] | None = None
    """Dtypes of a and b, if they differ."""
    extent: dict[str, list[int]] = field(default_factory=dict)
    """First and last index of a differing element, by axis."""
    pieces: tuple[str, ...] = ()
    """Stored tensors of b that hold a differing element: a rank's, a chunk, or a tensor of a Hugging Face file."""
    of_pieces: int = 0
    """Number of stored tensors of b that hold the logical tensor, without copies."""
    a_pieces: tuple[str, ...] = ()
    """Stored tensors of a that hold a differing element, if a is a Megatron checkpoint."""
    of_a_pieces: int = 0
    rows: int = 0
    """Rows of the vocabulary that b has more than a; negative if fewer."""
    rows_zero: bool = False
    """True if the rows that only one side has are zero."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Difference":
        """Return the difference that `asdict` wrote, also if it has been JSON in between."""
        listed = {name: tuple(values[name]) for name in ("pieces", "a_pieces")}
        dtypes = None if values["dtypes"] is None else tuple(values["dtypes"])
        return cls(**{**values, **listed, "dtypes": dtypes})


def logical_of(name: str) -> Logical:
    """Return the logical tensor that `str(logical)` names: `layer.3.qkv.weight`."""
    place, _, leaf = name.rpartition(".")
    found = re.fullmatch(r"layer\.(\d+)\.(\w+)", place)
    return Logical(f"layer.{found[2]}", int(found[1]), leaf) if found else Logical(place, None, leaf)


def tp_ranks(
    difference: Difference, family: Family, spec: ModelSpec, *, tp: int, padded_vocab_size: int | None = None
) -> list[int]:
    """Return the tensor-parallel ranks, of `tp`, that hold differing elements; all of them if the tensor is not cut.

    The vocabulary is padded by megatron-core's rule unless `padded_vocab_size` is given.
    """
    logical, every = logical_of(difference.tensor), list(range(tp))
    axes, cut = family.axes(logical), family.row(logical.row).cut
    if cut not in axes.names or not difference.extent or not (cut == "v" or can_share(axes, spec.sizes, cut, tp)):
        return every
    box: Box = tuple((first, last + 1) for first, last in (difference.extent[name] for name in axes.names))
    padded = (padded_vocab_size or padded_vocab(spec.vocab_size, tp=tp)) if cut == "v" else None
    shares = [piece(axes, spec.sizes, cut=cut, rank=rank, of=tp, padded=padded) for rank in every]
    return [rank for rank in every if any(intersect(block.box, box) for block in shares[rank].blocks)]


def differing(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor | None:
    """Return a mask of the elements that differ in any bit, after rounding the wider dtype; None if none differs.

    Neither of bf16 and fp16 is wider: an element counts as the same if rounding either one makes both equal.
    """
    if one.dtype == two.dtype:
        x, y = bits(one), bits(two)
        return None if torch.equal(x, y) else x != y
    wide, narrow = (one, two) if one.dtype.itemsize >= two.dtype.itemsize else (two, one)
    found = _unrounded(wide, narrow)
    if found is None or wide.dtype.itemsize != narrow.dtype.itemsize:
        return found
    back = _unrounded(narrow, wide)
    return None if back is None or not (found & back).any() else found & back


def _unrounded(wide: torch.Tensor, narrow: torch.Tensor) -> torch.Tensor | None:
    """Return where `narrow` is not `wide` rounded, None if nowhere. Overflow counts as different; NaN equals NaN."""
    rounded = wide.to(narrow.dtype)
    x, y = bits(rounded), bits(narrow)
    if torch.equal(x, y) and finite(narrow):
        return None
    found = ((x != y) & ~(rounded.isnan() & narrow.isnan())) | (wide.isfinite() & ~narrow.isfinite())
    return found if found.any() else None


@dataclass(slots=True)
class StoredPieces:
    """The stored tensors of one logical tensor on one side, and those of them that hold a differing element."""

    source: Source
    logical: Logical
    hit: list[str] = field(default_factory=list)

    def add(self, differ: torch.Tensor, box: Box) -> None:
        for stored in primary(self.source.pieces(self.logical)):
            parts = [intersect(block.box, box) for block in stored.piece.blocks] if stored.key not in self.hit else []
            if any(part and bool(differ[within(part, box)].any()) for part in parts):
                self.hit.append(stored.key)

    @property
    def total(self) -> int:
        return len(primary(self.source.pieces(self.logical)))


@dataclass(slots=True)
class DifferenceTally:
    """Running count of the differing elements of one tensor, over all its slabs."""

    pieces: tuple[StoredPieces, StoredPieces]
    elements: int = 0
    nonfinite: int = 0
    largest: float | None = None
    at: tuple[int, ...] = ()
    values: tuple[str, str] = ("", "")
    """Values of both sides at `at`; until two finite ones differ, those of the first differing element."""
    extent: list[list[int]] = field(default_factory=list)
    """First and last index of a differing element, along each axis."""

    def add(self, one: torch.Tensor, two: torch.Tensor, box: Box) -> None:
        differ = differing(one, two)
        if differ is None:
            return
        self._place(differ, box)
        exact = torch.float64 if max(one.dtype.itemsize, two.dtype.itemsize) > 2 else torch.float32
        apart = (one.to(exact) - two.to(exact)).abs()
        counts = differ & apart.isfinite()
        self.elements += int(differ.count_nonzero())
        self.nonfinite += int((differ & ~counts).count_nonzero())
        if not counts.any():
            if not self.values[0]:
                self._keep(one, two, int(differ.flatten().byte().argmax()), box)
            return
        apart.masked_fill_(~counts, -1.0)
        worst = int(apart.argmax())
        if self.largest is None or float(apart.flatten()[worst]) > self.largest:
            self.largest = float(apart.flatten()[worst])
            self._keep(one, two, worst, box)

    def _place(self, differ: torch.Tensor, box: Box) -> None:
        here = [_ends(differ, axis, start) for axis, (start, _) in enumerate(box)]
        before = self.extent or here
        self.extent = [[min(a, c), max(b, d)] for (a, b), (c, d) in zip(before, here, strict=True)]
        for side in self.pieces:
            side.add(differ, box)

    def _keep(self, one: torch.Tensor, two: torch.Tensor, index: int, box: Box) -> None:
        inside = torch.unravel_index(torch.tensor(index), one.shape)
        self.at = tuple(start + int(i) for (start, _), i in zip(box, inside, strict=True))
        self.values = f"{float(one[inside]):g}", f"{float(two[inside]):g}"


def _ends(differ: torch.Tensor, axis: int, start: int) -> list[int]:
    """Return the first and the last index along an axis at which anything differs."""
    others = [i for i in range(differ.dim()) if i != axis]
    along = (differ.any(dim=others) if others else differ).nonzero()
    return [start + int(along[0]), start + int(along[-1])]
