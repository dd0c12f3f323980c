"""A model with another vocabulary: rows that are kept or moved bit for bit, and new rows by a rule."""

import hashlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from mconv.convert.folders.host import SLAB_BYTES
from mconv.convert.sources.source import Derived, Slab, dims_of, dtype_of
from mconv.convert.spelling.table import Logical, Stored
from mconv.shard.axes import Box, lengths, whole
from mconv.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from mconv.convert.sources.scratch import Scratch

Fill = Literal["mean", "normal", "zeros"]
NEW = -1
"""In place of a row of the base: the row is new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Where each row of a vocabulary comes from."""

    origin: Sequence[int]
    """The row of the base that each row is, or NEW."""
    parts: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """New rows that are the mean of some rows of the base."""
    fill: Fill = "mean"
    """The rule for all other new rows: zero, the mean of the base's rows, or drawn with their mean and deviation."""
    seed: int = 0

    def runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield first row, first row of the base (NEW: none) and length of each run of rows that lie together there."""
        # origin 0 1 2 7 8 NEW NEW -> (0, 0, 3), (3, 7, 2), (5, NEW, 2)
        numbers = range(start, stop)
        for _, group in groupby(
            numbers, lambda i: NEW if self.origin[i] == NEW else self.origin[i] - i + len(self.origin)
        ):
            rows = list(group)
            yield rows[0], self.origin[rows[0]], len(rows)

    def fingerprint(self) -> str:
        """Return a digest of all that decides the rows."""
        values = [list(self.origin), sorted((row, list(of)) for row, of in self.parts.items()), self.fill, self.seed]
        return hashlib.sha256(repr(values).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Resized(Derived):
    """A base with another vocabulary: its embedding and its head have other rows, all else is unchanged."""

    rows: Rows
    known: dict[Logical, "Moments"] = field(default_factory=dict, init=False, repr=False, compare=False)
    lock: Any = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    @property
    def spec(self) -> ModelSpec:
        return replace(self.base.spec, vocab_size=len(self.rows.origin))

    def pull(self, tensor: Logical, box: Box, scratch: "Scratch | None" = None) -> "torch.Tensor":
        """Return a box of a tensor: a view of the base's where its rows lie there as they do here."""
        if not self.has_rows(tensor):
            return self.base.pull(tensor, box, scratch)
        from mconv.convert.sources.scratch import Scratch

        (start, stop), *rest = box
        runs, dtype = list(self.rows.runs(start, stop)), dtype_of(self, tensor)
        if len(runs) == 1 and runs[0][1] != NEW:
            return self.base.pull(tensor, ((runs[0][1], runs[0][1] + stop - start), *rest), scratch).to(dtype)
        out = (scratch or Scratch()).take("resized", lengths(box), dtype)
        cut = tuple(slice(*span) for span in rest)
        for new, old, n in runs:
            if old != NEW:
                out[new - start : new - start + n] = self.base.pull(tensor, ((old, old + n), *rest), scratch)
                continue
            for row in range(new, new + n):
                out[row - start] = self._new(tensor, row)[cut]
        return out

    def conflicts(self, tensor: Logical, slab: Slab) -> Iterable[tuple[Stored, Stored]]:
        """Yield the base's conflicts, in the rows of the base that a slab is made of."""
        if not self.has_rows(tensor):
            yield from self.base.conflicts(tensor, slab)
            return
        (start, stop), *rest = slab.box
        for new, old, n in self.rows.runs(start, stop):
            if old != NEW:
                part = slab.tensor[new - start : new - start + n]
                yield from self.base.conflicts(tensor, Slab(((old, old + n), *rest), part))

    def fingerprint(self) -> list[Any]:
        return [*self.base.fingerprint(), "rows", self.rows.fingerprint()]

    def has_rows(self, tensor: Logical) -> bool:
        """Return whether a tensor has a row for each token."""
        return self.family.axes(tensor).names[0] == "v"

    def _new(self, tensor: Logical, row: int) -> "torch.Tensor":
        """Return a new row, whole, in fp64: the same whatever else is read."""
        import torch

        rest = dims_of(self.base, tensor)[1:]
        if row in self.rows.parts:
            held = [self.base.pull(tensor, ((i, i + 1), *whole(rest))).double() for i in self.rows.parts[row]]
            return torch.cat(held).mean(0)
        if self.rows.fill == "zeros":
            return torch.zeros(rest, dtype=torch.float64)
        found = self._moments(tensor)
        if self.rows.fill == "mean":
            return found.mean
        return found.mean + found.deviation * drawn(rest, self.rows.seed, tensor, row)

    def _moments(self, tensor: Logical) -> "Moments":
        """Return the moments of the base's rows, read once, by whichever worker is first."""
        with self.lock:
            if tensor not in self.known:
                dims = dims_of(self.base, tensor)
                self.known[tensor] = Moments.of(lambda box: self.base.pull(tensor, box), dims)
            return self.known[tensor]


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation of each column of a table, in fp64."""

    mean: "torch.Tensor"
    deviation: "torch.Tensor"

    @classmethod
    def of(cls, pull: Callable[[Box], "torch.Tensor"], dims: tuple[int, ...]) -> "Moments":
        """Read a table once, in blocks of rows that do not depend on how it is stored."""
        import torch

        count, *rest = dims
        total, squares = (torch.zeros(rest, dtype=torch.float64) for _ in range(2))
        block = max(1, SLAB_BYTES // 8 // max(1, total.numel()))
        for i in range(0, count, block):
            rows = pull(((i, min(i + block, count)), *whole(tuple(rest)))).double()
            total += rows.sum(0)
            squares += rows.square().sum(0)
        mean = total / count
        return cls(mean, (squares / count - mean.square()).clamp(min=0).sqrt())


def drawn(shape: Collection[int], seed: int, tensor: Logical, row: int) -> "torch.Tensor":
    """Return standard normal numbers that follow from the seed, the tensor and the row, and from nothing else."""
    import torch

    digest = hashlib.sha256(f"{seed} {tensor} {row}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
