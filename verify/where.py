"""Which elements of a logical tensor differ between two checkpoints: how many, how far, where, in whose stored pieces."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mconv.convert.sources.checks import bits, finite
from mconv.convert.sources.source import Source
from mconv.convert.sources.stored import primary
from mconv.convert.table import Family, Logical
from mconv.shard.axes import Box, intersect, within
from mconv.shard.cut import can_share
from mconv.shard.layout import padded_vocab
from mconv.shard.pattern import piece
from mconv.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One logical tensor that is not the same in both."""

    tensor: str
    how: str
    """`missing`, `shape` (where only the vocabulary's size differs, the rows that both have were compared) or `bits`."""
    a: str
    b: str
    """What each side has: a shape by named axes, or the value where they are furthest apart."""
    elements: int = 0
    """Elements that differ in any bit; where the dtypes differ, after rounding."""
    of: int = 0
    """Elements that were compared."""
    largest: float | None = None
    """The largest difference of two finite values."""
    at: dict[str, int] = field(default_factory=dict)
    """Where that is, by axis."""
    nonfinite: int = 0
    """Differing elements of which one is NaN or infinite."""
    dtypes: tuple[str, str] | None = None
    """Of both, where they differ."""
    extent: dict[str, list[int]] = field(default_factory=dict)
    """First and last index of a differing element, by axis."""
    pieces: tuple[str, ...] = ()
    """The stored tensors of b that hold a differing element: a rank's, a chunk, one of Hugging Face's."""
    of_pieces: int = 0
    """How many stored tensors of b hold the logical tensor, copies left out."""
    a_pieces: tuple[str, ...] = ()
    """The same of a, where it is a Megatron checkpoint."""
    of_a_pieces: int = 0
    rows: int = 0
    """Rows of the vocabulary that b has more than a (fewer: negative)."""
    rows_zero: bool = False
    """Whether the rows that only one side has are zero."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Difference":
        """The inverse of `asdict`, also when it has been JSON in between."""
        listed = {name: tuple(values[name]) for name in ("pieces", "a_pieces")}
        dtypes = None if values["dtypes"] is None else tuple(values["dtypes"])
        return cls(**{**values, **listed, "dtypes": dtypes})


def logical_of(name: str) -> Logical:
    """The logical tensor that `str(logical)` named: `layer.3.qkv.weight`."""
    place, _, leaf = name.rpartition(".")
    found = re.fullmatch(r"layer\.(\d+)\.(\w+)", place)
    return Logical(f"layer.{found[2]}", int(found[1]), leaf) if found else Logical(place, None, leaf)


def tp_ranks(
    difference: Difference, family: Family, spec: ModelSpec, *, tp: int, padded_vocab_size: int | None = None
) -> list[int]:
    """Which of `tp` tensor-parallel ranks hold differing elements: all of them where the tensor is not cut.

    The padding of the vocabulary is megatron-core's own rule unless `padded_vocab_size` says what it is.
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
    """Which elements differ in any bit; where the dtypes differ, after the wider is rounded. None: none do.

    Of bf16 and fp16 neither is wider, so an element is the same if rounding either of the two makes it so.
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
    """Where `narrow` is not what rounding makes of `wide`. What overflows is not the same; NaN is, whatever its bits."""
    rounded = wide.to(narrow.dtype)
    x, y = bits(rounded), bits(narrow)
    if torch.equal(x, y) and finite(narrow):
        return None
    found = ((x != y) & ~(rounded.isnan() & narrow.isnan())) | (wide.isfinite() & ~narrow.isfinite())
    return found if found.any() else None


@dataclass(slots=True)
class Pieces:
    """The stored tensors that one side keeps a logical tensor in, and those of them that hold a differing element."""

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
class Found:
    """Differing elements of one tensor, over all its slabs."""

    pieces: tuple[Pieces, Pieces]
    elements: int = 0
    nonfinite: int = 0
    largest: float | None = None
    at: tuple[int, ...] = ()
    values: tuple[str, str] = ("", "")
    """Of the element at `at`; while no two finite ones differ, of the first that differs."""
    extent: list[list[int]] = field(default_factory=list)
    """First and last index of a differing element, on each axis."""

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
    """First and last index along an axis at which anything differs."""
    others = [i for i in range(differ.dim()) if i != axis]
    along = (differ.any(dim=others) if others else differ).nonzero()
    return [start + int(along[0]), start + int(along[-1])]
