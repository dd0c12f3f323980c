"""A resized vocabulary made again: where each row comes from, and what a new one is by its rule."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.folders import tokens
from mconv.convert.sources.checks import bits
from mconv.convert.sources.resized import NEW, Rows
from mconv.convert.sources.source import dims_of, dtype_of
from mconv.convert.sources.unfused import SLAB, Unfused
from mconv.convert.spelling.table import Logical
from mconv.convert.surgery import tokenizer as t
from mconv.convert.surgery import vocabulary
from mconv.errors import FormatError
from mconv.shard.axes import whole
from mconv.verify.recipes.again import Wrong, widest

SUMS = 1e-13
"""Relative error of a sum in fp64 over the rows of a vocabulary."""
EXPLAINED = 4096
"""Wrong rows of a tensor that are looked for elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Where the rows of a vocabulary come from."""

    origin: np.ndarray
    """The base's row of each row; NEW where a rule makes it."""
    parts: Mapping[int, Sequence[int]]
    """The rows of the base that a new one is the mean of, where the rule is of that kind."""
    init: str
    seed: int
    problems: list[str]
    """What is wrong with the tokenizer's files, in sentences."""

    @property
    def fresh(self) -> int:
        """The number of new rows."""
        return int((self.origin == NEW).sum())


def table(model: SourceModel, base: SourceModel, recipe: Mapping[str, Any]) -> Table:
    """Return where the rows come from, by the recipe and the tokenizers' files as they are now."""
    try:
        count, added, init = int(recipe["rows"]), dict(recipe["tokens"]), str(recipe["init"])
        moved, seed = "tokenizer" in recipe, int(recipe["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{model.path}: its mconv.json does not say whole how it was resized ({error!r})") from error
    before, after = ({name: path for name, path in one.side_files.items() if tokens.is_tokenizer(name)}
                     for one in (base, model))  # fmt: skip
    named = moved or added or init.startswith((vocabulary.COPY, vocabulary.SUBWORDS))
    old, new = (t.ids_of(files, of=one.path) if named else {} for files, one in ((before, base), (after, model)))
    origin = _origin(count, base.spec.vocab_size, old, new, moved=moved, added=added)
    asked = vocabulary.Request(size=count, init=init, seed=seed)
    words = vocabulary.Vocabulary(before=before, old=old, files=after, new=new, added=added, ids=0, rows=count)
    parts = vocabulary.parts_of(base, asked, words, [*map(int, np.flatnonzero(origin == NEW))], moved=moved)
    fill: Any = init if init in ("normal", "zeros") else "mean"
    known = Rows(origin=origin.tolist(), parts=parts, fill=fill, seed=seed).fingerprint()
    problems = [f"tokenizer: {token} has the id {new.get(token)}, and {id} by the recipe"
                for token, id in added.items() if new.get(token) != id]  # fmt: skip
    if known != recipe.get("digest"):
        problems.append(f"the tokenizer's files of {base.path} or {model.path} have changed since its rows were chosen")
    return Table(origin=origin, parts=parts, init=init, seed=seed, problems=problems)


def _origin(
    count: int, held: int, old: Mapping[str, int], new: Mapping[str, int], *, moved: bool, added: Mapping[str, int]
) -> np.ndarray:
    """Return the base's row of each row: by the token's string with another tokenizer, else by number."""
    if not moved:
        found = np.where(np.arange(count) < held, np.arange(count), NEW)
        found[[row for row in added.values() if row < count]] = NEW
        return found
    found = np.full(count, NEW)
    for token, row in new.items():
        if old.get(token, held) < held:
            found[row] = old[token]
    return found


# ---- rows ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Moments:
    """Mean, variance and mean square of the columns of a base's table, in fp64."""

    mean: Tensor
    variance: Tensor
    square: Tensor


@dataclass(frozen=True, slots=True)
class Judged:
    """A table of the result, and the base's that its rows come from."""

    table: Table
    model: SourceModel
    base: SourceModel
    logical: Logical
    dtypes: Sequence[torch.dtype]
    """The dtypes that a row went through: the base's, those of casts, the result's."""
    moments: Moments | None
    """Of the base's table, where a rule needs them."""

    def found(self, start: int, stop: int) -> Tensor:
        """Return rows of the result."""
        return _rows(self.model, self.logical, start, stop)

    def kept(self, origin: np.ndarray) -> Tensor:
        """Return rows of the base, cast as the result was."""
        # 0 1 2 7 8 -> rows 0 to 2 and 7 to 8
        runs = np.split(origin, np.flatnonzero(np.diff(origin) != 1) + 1)
        found = torch.cat([_rows(self.base, self.logical, int(run[0]), int(run[-1]) + 1) for run in runs])
        for dtype in self.dtypes:
            found = found.to(dtype)
        return found

    def wrong_in(self, start: int, stop: int) -> tuple[Tensor, float]:
        """Return which elements of some rows are wrong, and the largest distance of one."""
        found, origin = self.found(start, stop), self.table.origin[start:stop]
        bad, largest = torch.zeros(found.shape, dtype=torch.bool), 0.0
        if len(old := np.flatnonzero(origin != NEW)):
            expected = self.kept(origin[old])
            bad[old] = bits(found[old]) != bits(expected)
            largest = widest(found[old], expected)
        if len(new := np.flatnonzero(origin == NEW)):
            exact, slack = self.rule([start + int(row) for row in new])
            apart = (found[new].double() - exact).abs()
            bad[new] = ~(apart <= slack)
            largest = max(largest, float(apart.max()))
        return bad, largest if bad.any() else 0.0

    def rule(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return new rows by their rule, in fp64, and how far rounding may be from them."""
        exact, slack = map(torch.stack, zip(*map(self._exact, rows), strict=True))
        for dtype in self.dtypes:
            slack = slack + torch.finfo(dtype).eps / 2 * (exact.abs() + slack) + torch.finfo(dtype).tiny
        return exact, slack

    def _exact(self, row: int) -> tuple[Tensor, Tensor]:
        """Return a new row by its rule, and how far sums in fp64 may be from it."""
        if row in self.table.parts:
            held = torch.cat([_rows(self.base, self.logical, i, i + 1).double() for i in self.table.parts[row]])
            return held.mean(0), SUMS * held.abs().sum(0)
        if self.moments is None:
            zero = torch.zeros(self.found(0, 1).shape[1], dtype=torch.float64)
            return zero, zero
        mean, slack = self.moments.mean, SUMS * self.moments.square.sqrt()
        if self.table.init != "normal":
            return mean, slack
        noise, deviation = _noise(self.table.seed, self.logical, row, mean.shape[0]), self.moments.variance.sqrt()
        spread = (self.moments.variance + SUMS * self.moments.square).sqrt() - deviation
        return mean + deviation * noise, slack + spread * noise.abs()


def wrong(
    table: Table, model: SourceModel, base: SourceModel, tensor: Unfused, casts: Sequence[torch.dtype]
) -> Iterator[Wrong]:
    """Yield what is wrong with the rows of a tensor, if something is."""
    logical, own = tensor.logical, [dtype_of(one.source, tensor.logical) for one in (base, model)]
    needed = table.init != "zeros" and table.fresh > len(table.parts)
    moments = _moments(base, logical) if needed else None
    judged = Judged(table, model, base, logical, [own[0], *casts, own[1]], moments)
    rows: list[int] = []
    count, largest = 0, 0.0
    step = max(1, SLAB // max(1, tensor.elements // len(table.origin)))
    for start in range(0, len(table.origin), step):
        bad, apart = judged.wrong_in(start, min(start + step, len(table.origin)))
        rows += [start + int(row) for row in bad.any(1).nonzero()]
        count, largest = count + int(bad.sum()), max(largest, apart)
    if rows:
        why = _instead(judged, rows)
        yield Wrong(name=tensor.key, elements=count, of=tensor.elements, largest=largest, kind="rows", why=why)


def _rows(model: SourceModel, logical: Logical, start: int, stop: int) -> Tensor:
    rest = whole(dims_of(model.source, logical)[1:])
    return model.source.pull(logical, ((start, stop), *rest)).reshape(stop - start, -1)


def _moments(base: SourceModel, logical: Logical) -> Moments:
    """Return the moments of the base's columns, in two passes."""
    count, *rest = dims_of(base.source, logical)
    step = max(1, SLAB // prod(rest))

    def mean_of(of: Callable[[Tensor], Tensor]) -> Tensor:
        blocks = (_rows(base, logical, i, min(i + step, count)).double() for i in range(0, count, step))
        return reduce(torch.add, (of(block).sum(0) for block in blocks)) / count

    mean = mean_of(lambda block: block)
    variance = mean_of(lambda block: (block - mean).square())
    return Moments(mean, variance, variance + mean.square())


def _noise(seed: int, logical: Logical, row: int, width: int) -> Tensor:
    """Return the standard normal numbers of a new row, which follow from the seed, the tensor and the row alone."""
    start = int.from_bytes(hashlib.sha256(f"{seed} {logical} {row}".encode()).digest()[:8], "little") >> 1
    return torch.randn(width, generator=torch.Generator().manual_seed(start), dtype=torch.float64)


# ---- what wrong rows are instead -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Reading:
    """A wrong row, and what it is."""

    row: int
    origin: int
    """The base's row that it should be; NEW where a rule makes it."""
    held: int | None
    """The base's row that it is, if it is one."""
    zero: bool

    @property
    def alike(self) -> tuple[object, ...]:
        """What rows that are one range have in common."""
        shifts = (at if at in (None, NEW) else at - self.row for at in (self.origin, self.held))
        return (*shifts, self.zero)


def _instead(judged: Judged, rows: Sequence[int]) -> str:
    """Return which rows are wrong and what they are, as far as that is known."""
    known = _base_rows(judged)
    readings = [_reading(judged, row, known) for row in rows[:EXPLAINED]]
    grouped = groupby(enumerate(readings), lambda one: (one[1].row - one[0], one[1].alike))
    ranges = [[reading for _, reading in group] for _, group in grouped]
    more = f", and {len(ranges) - 3} more ranges" if len(ranges) > 3 else ""
    return ", ".join(_words(judged.table, group) for group in ranges[:3]) + more


def _base_rows(judged: Judged) -> dict[bytes, int]:
    """Return the number of each row of the base, by its bytes as they would be in the result."""
    count, step = judged.base.spec.vocab_size, max(1, SLAB // judged.found(0, 1).shape[1])
    found: dict[bytes, int] = {}
    for start in range(0, count, step):
        table = bits(judged.kept(np.arange(start, min(start + step, count)))).numpy()
        found.update({row.tobytes(): start + at for at, row in enumerate(table)})
    return found


def _reading(judged: Judged, row: int, known: Mapping[bytes, int]) -> Reading:
    found = judged.found(row, row + 1)
    held = known.get(bits(found).numpy().tobytes())
    return Reading(row, int(judged.table.origin[row]), held, not found.count_nonzero())


def _words(table: Table, group: Sequence[Reading]) -> str:
    """Return what a range of rows is, and what the recipe says: rows 5-9 are rows 4-8 of the base, not 5-9."""
    first, count = group[0], len(group)
    rows = f"{_span('row', first.row, count)} {'is' if count == 1 else 'are'}"
    should = f"as the rule says ({table.init})" if first.origin == NEW else _span("row", first.origin, count)
    if first.zero:
        return f"{rows} zero, not {should}"
    if first.held is not None:
        return f"{rows} {_span('row', first.held, count)} of the base, not {should}"
    return f"{rows} not {should}" + " of the base" * (first.origin != NEW)


def _span(what: str, first: int, count: int) -> str:
    return f"{what} {first}" if count == 1 else f"{what}s {first}-{first + count - 1}"
