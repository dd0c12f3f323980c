"""The heat map of a comparison, layers x modules: which cell has which value, and how strongly it is coloured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mconv.verify.diff import OUTSIDE, Diff, Sums


@dataclass(frozen=True, slots=True)
class Cell:
    """A module of a layer."""

    key: str
    sums: Sums
    shade: float | None
    """From 0, the least changed of those that are, to 1; None: not changed, or not finite."""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.sums.relative_norm)


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Relative norms of the difference on a logarithmic scale, a row for each module and a column for each layer."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell | None]]]
    low: float
    high: float
    """The least and the largest relative norm that is coloured; both 0 where nothing has changed."""


def heatmap(found: Diff) -> Heatmap:
    """Return the map of a comparison; the last column, if any, is of what lies outside the layers."""
    pairs = found.shared.pairs
    layers: list[int | None] = [*sorted({pair.layer for pair in pairs if pair.layer is not None})]
    layers += [None] if any(pair.layer is None for pair in pairs) else []
    values = [one.relative_norm for one in found.tensors.values()]
    coloured = [x for x in values if math.isfinite(x) and x > 0]
    low, high = (min(coloured), max(coloured)) if coloured else (0.0, 0.0)
    at = {(pair.module, pair.layer): Cell(pair.key, found.tensors[pair.key], None) for pair in pairs}
    shaded = {place: Cell(cell.key, cell.sums, _shade(cell, low, high)) for place, cell in at.items()}
    modules = dict.fromkeys(pair.module for pair in sorted(pairs, key=lambda pair: pair.layer is None))
    rows = [(module, [shaded.get((module, layer)) for layer in layers]) for module in modules]
    return Heatmap([OUTSIDE if layer is None else str(layer) for layer in layers], rows, low, high)


def _shade(cell: Cell, low: float, high: float) -> float | None:
    """Return where a value lies between the least and the largest, by its logarithm."""
    value = cell.sums.relative_norm
    if not cell.finite or not value:
        return None
    return math.log(value / low) / math.log(high / low) if high > low else 1.0
