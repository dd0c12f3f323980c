"""A model with the vocabulary of several: its own row of each token that it has, rows of other models for all others."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mconv.convert.formats.dtype import DType
from mconv.convert.sources.resized import Moments, Resized
from mconv.convert.sources.source import Source, dims_of
from mconv.convert.spelling.table import Logical
from mconv.shard.axes import whole

if TYPE_CHECKING:
    import torch

Taken = Mapping[int, Sequence[tuple[int, int]]]
"""New rows, each the mean of rows (number of a model, row); zero if there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transplanted(Resized):
    """A base with another vocabulary, whose new rows are those of other models, or the mean of all its rows."""

    others: tuple[Source, ...]
    """The models that rows are taken from."""
    taken: Mapping[Logical, Taken]
    """The new rows of each table."""
    tokens: int
    """Rows that tokens have; those behind them are padding, the mean of these."""
    kind: DType
    """The dtype of its tables: one that holds those of all models."""

    def dtypes(self, tensor: Logical) -> Collection[DType]:
        return {self.kind} if self.has_rows(tensor) else self.base.dtypes(tensor)

    def fingerprint(self) -> list[Any]:
        taken = [
            [str(tensor), sorted((row, list(of)) for row, of in rows.items())] for tensor, rows in self.taken.items()
        ]
        return [*self.base.fingerprint(), "rows", self.rows.fingerprint(), taken, str(self.kind)]

    def _new(self, tensor: Logical, row: int) -> "torch.Tensor":
        """Return a new row, whole, in fp64."""
        import torch

        rest = dims_of(self.base, tensor)[1:]
        if row >= self.tokens:
            return self._mean(tensor)
        taken = self.taken[tensor][row]
        held = [self.others[number].pull(tensor, ((i, i + 1), *whole(rest))).double() for number, i in taken]
        return torch.cat(held).mean(0) if held else torch.zeros(rest, dtype=torch.float64)

    def _mean(self, tensor: Logical) -> "torch.Tensor":
        """Return the mean of the tokens' rows, read once, by whichever worker is first."""
        with self.lock:
            if tensor not in self.known:
                dims = (self.tokens, *dims_of(self.base, tensor)[1:])
                self.known[tensor] = Moments.of(lambda box: self.pull(tensor, box), dims)
            return self.known[tensor].mean
