"""How far two checkpoints are apart: statistics of each Hugging Face tensor, each layer and the whole model.

Both are read once, slab by slab, and all is summed in fp64 over slabs that depend on the shape alone, so that the numbers
are the same whatever formats and layouts the two have.
"""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.engine import pool
from mconv.convert.folders.host import workers
from mconv.convert.formats.mapped import forget
from mconv.convert.sources.checks import bits, same_bits
from mconv.convert.sources.read import Progress, quiet
from mconv.convert.sources.unfused import Unfused, boxes, unfused
from mconv.errors import MconvError
from mconv.shard.axes import Box
from mconv.verify.specs import in_words, incomparable, spec_differences

OUTSIDE = "outside the layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What is summed over elements of two tensors, a and b, and what follows from it. Sums of tensors add up."""

    elements: int = 0
    changed: int = 0
    """Elements that differ: in any bit, or in value where the dtypes differ."""
    nonfinite: int = 0
    """Elements that are NaN or infinite on one side at least; with any, the statistics are NaN."""
    absolute: float = 0.0
    largest: float = 0.0
    apart: float = 0.0
    """Squared norm of b - a."""
    a: float = 0.0
    """Squared norm of a."""
    b: float = 0.0
    dot: float = 0.0

    def __add__(self, other: "Sums") -> "Sums":
        mine = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        largest = math.nan if math.isnan(mine["largest"]) else max(self.largest, other.largest)
        return Sums(**{**mine, "largest": largest})

    @property
    def mean_abs(self) -> float:
        return self.absolute / self.elements if self.elements else 0.0

    @property
    def relative_norm(self) -> float:
        """Norm of b - a over the norm of a."""
        if math.isnan(self.apart):
            return math.nan
        return math.sqrt(self.apart / self.a) if self.a else math.inf if self.apart else 0.0

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between a and b as vectors; None if one of them is zero."""
        if not self.a or not self.b:
            return None
        return 1.0 if not self.apart else max(-1.0, min(1.0, self.dot / math.sqrt(self.a) / math.sqrt(self.b)))

    @property
    def share(self) -> float:
        return self.changed / self.elements if self.elements else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as plain values."""
        return {
            "elements": self.elements, "changed": self.changed, "share_changed": self.share, "mean_abs": self.mean_abs,
            "max_abs": self.largest, "relative_norm": self.relative_norm, "cosine": self.cosine,
            "nonfinite": self.nonfinite,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pair:
    """A Hugging Face tensor of both checkpoints, and the part of it that both have."""

    key: str
    module: str
    """Its name within its layer: self_attn.q_proj.weight."""
    layer: int | None
    a: Unfused
    b: Unfused
    common: tuple[Box, Box]
    """The part that is compared, in each logical tensor: all of it, or the first rows of a vocabulary."""

    @property
    def partial(self) -> bool:
        return self.common != (self.a.box, self.b.box)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What two checkpoints have in common, and what not, before a weight is read."""

    pairs: Sequence[Pair]
    only_a: Sequence[str]
    only_b: Sequence[str]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Tensors of both that have other shapes, the vocabulary aside: not compared."""
    notes: Sequence[str]
    """What of the two cannot be compared, or is no tensor and differs, in sentences."""

    @property
    def elements(self) -> int:
        return sum(pair.a.elements for pair in self.pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """How far two checkpoints are apart."""

    shared: Shared
    tensors: Mapping[str, Sums]
    """Of each pair, by its key, in the order of the forward pass."""
    angles: Mapping[str, Any] = field(default_factory=dict)
    """Of linears, by their keys, if they were asked for."""

    @property
    def total(self) -> Sums:
        return sum(self.tensors.values(), Sums())

    @property
    def layers(self) -> dict[str, Sums]:
        """The sums of each layer, and of what lies outside the layers."""
        return self._grouped(lambda pair: OUTSIDE if pair.layer is None else f"layer {pair.layer}")

    @property
    def modules(self) -> dict[str, Sums]:
        """The sums of each module over all layers."""
        return self._grouped(lambda pair: pair.module)

    def _grouped(self, name_of: Callable[[Pair], str]) -> dict[str, Sums]:
        found: dict[str, Sums] = {}
        for pair in self.shared.pairs:
            name = name_of(pair)
            found[name] = found.get(name, Sums()) + self.tensors[pair.key]
        return found


# ---- what both have --------------------------------------------------------------------------------------------------
def shared(a: SourceModel, b: SourceModel) -> Shared:
    """Return what two checkpoints have in common. Raises MconvError if that is nothing."""
    ours, theirs = _tensors(a, b), _tensors(b, a)
    pairs, shapes = [], {}
    for key in (key for key in ours if key in theirs):
        one, two = ours[key], theirs[key]
        if both := _common(one, two):
            pairs.append(Pair(key, _module(a, one), one.logical.layer, one, two, both))
        else:
            shapes[key] = (one.shape, two.shape)
    unlike = {name: two for name, two in spec_differences(a.spec, b.spec).items() if name != "tied_embeddings"}
    if not pairs or incomparable(a.spec, b.spec):
        why = f"they differ in {in_words(unlike)}" if unlike else "no tensor has the same name in both"
        raise MconvError(f"{a.name} and {b.name} are of different architectures: {why}")
    only = [key for key in ours if key not in theirs], [key for key in theirs if key not in ours]
    notes = [f"the architectures differ: {in_words(unlike)}"] if unlike else []
    notes += [f"{pair.key}: the first {_rows(pair):,} rows are compared, of {pair.a.shape[0]:,} and {pair.b.shape[0]:,}"
              for pair in pairs if pair.partial]  # fmt: skip
    notes += [_many(keys, f"only {side.name} has") for keys, side in zip(only, (a, b), strict=True) if keys]
    notes += [_many(list(shapes), "not compared, since the shapes differ:")] if shapes else []
    return Shared(pairs=pairs, only_a=only[0], only_b=only[1], shapes=shapes, notes=notes)


def _tensors(model: SourceModel, other: SourceModel) -> dict[str, Unfused]:
    """Return a model's tensors; a tied embedding is its head too, where the other has a head of its own."""
    found = unfused(model.family, model.spec)
    if model.spec.tied_embeddings and not other.spec.tied_embeddings:
        found[model.family.head_key] = found[model.family.embedding_key]
    return found


def _common(one: Unfused, two: Unfused) -> tuple[Box, Box] | None:
    """Return the part of a tensor that both have: all, or the rows of the smaller vocabulary; None if shapes differ."""
    names = [x.row.axes_of(x.logical.leaf).names for x in (one, two)]
    if len(one.dims) != len(two.dims) or one.dims[1:] != two.dims[1:]:
        return None
    if one.dims == two.dims:
        return one.box, two.box
    if names[0][0] not in "vm" or names[1][0] not in "vm":
        return None
    rows = (0, min(one.dims[0], two.dims[0]))
    return (rows, *one.box[1:]), (rows, *two.box[1:])


def _rows(pair: Pair) -> int:
    return pair.common[0][0][1]


def _module(model: SourceModel, tensor: Unfused) -> str:
    """Return a tensor's name within its layer; of one outside the layers, the whole name."""
    layer = tensor.logical.layer
    return tensor.key if layer is None else tensor.key.removeprefix(f"{model.family.layer_module(layer)}.")


def _many(keys: Sequence[str], what: str) -> str:
    more = f" and {len(keys) - 2} more tensors" if len(keys) > 2 else ""
    return f"{what} {', '.join(keys[:2])}{more}"


# ---- how far it is apart ---------------------------------------------------------------------------------------------
def measure(a: SourceModel, b: SourceModel, what: Shared, *, progress: Progress = quiet) -> Diff:
    """Return how far two checkpoints are apart; `progress` is told of elements. Tensors are read by several threads."""
    found: dict[str, Sums] = {}

    def work(pair: Pair) -> tuple[str, Sums]:
        sums = compare(a, b, pair)
        progress(pair.a.elements)
        forget()
        return pair.key, sums

    lanes = pool.Lanes.of(what.pairs, [pair.a.elements for pair in what.pairs], workers())
    pool.run(lanes, work, found.update, threading.Event())
    return Diff(shared=what, tensors={pair.key: found[pair.key] for pair in what.pairs})


def compare(a: SourceModel, b: SourceModel, pair: Pair) -> Sums:
    """Return the sums of one tensor."""
    total = Sums()
    for one, two in zip(*map(boxes, pair.common), strict=True):
        total += sums_of(a.source.pull(pair.a.logical, one), b.source.pull(pair.b.logical, two))
    return total


def sums_of(one: torch.Tensor, two: torch.Tensor) -> Sums:
    """Return the sums of two slabs."""
    a = one.double()
    if same_bits(one, two) and math.isfinite(own := float(_squared(a))):
        return Sums(elements=a.numel(), a=own, b=own, dot=own)
    b = two.double()
    apart = b - a
    changed = (bits(one) != bits(two)) if one.dtype == two.dtype else a != b
    absolute = apart.abs()
    largest = float(absolute.max()) if apart.numel() else 0.0
    finite = math.isfinite(largest)
    return Sums(
        elements=a.numel(), changed=int(changed.count_nonzero()),
        nonfinite=0 if finite else int((~(a.isfinite() & b.isfinite())).count_nonzero()),
        absolute=_finite(float(absolute.sum())), largest=_finite(largest), apart=_finite(float(_squared(apart))),
        a=float(_squared(a)), b=float(_squared(b)), dot=float(torch.dot(a.flatten(), b.flatten())),
    )  # fmt: skip


def _squared(x: torch.Tensor) -> torch.Tensor:
    return torch.dot(x.flatten(), x.flatten())


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan
