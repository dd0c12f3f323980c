"""A LoRA adapter from the difference of two models: of each linear, the leading singular triplets of W_tuned - W_base."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.extraction import svd
from mconv.convert.formats.mapped import forget
from mconv.convert.peft.adapter import Adapter
from mconv.convert.peft.lora import ALL, Linear, chosen, linears, places
from mconv.convert.peft.settings import Settings
from mconv.convert.sources.source import Source
from mconv.convert.sources.unfused import Unfused, boxes, unfused
from mconv.convert.spelling.table import Logical
from mconv.errors import ConfigError, MconvError, refuse
from mconv.shard.axes import lengths, within
from mconv.spec import ModelSpec

MAY_DIFFER = ("vocab_size", "max_position_embeddings", "tied_embeddings", "qkv_bias", "proj_bias", "mlp_bias")
"""Fields of the spec that may differ: they leave the linears of a layer as they are."""
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Share of a linear's difference that its adapter keeps."""

    module: str
    shape: tuple[int, int]
    rank: int
    norm: float
    """Frobenius norm of the difference."""
    energy: float
    """Share of the squared norm that is kept; 1 where there is no difference."""
    error: float
    """Norm of what is not kept over the norm of the difference, measured with the factors as they are written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A tensor that differs and that no adapter of these linears changes."""

    key: str
    relative_norm: float | None
    """None: the two have it in different shapes, or one has it alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """Plan of an extraction: everything that can be known before a weight is read."""

    tuned: SourceModel
    base: SourceModel
    linears: Mapping[str, Linear]
    """Linears that get an adapter, by the names that `lora_targets` has."""
    rank: int
    energy: float | None
    seed: int

    @property
    def modules(self) -> list[tuple[Linear, int | None]]:
        """Every module that gets an adapter, layer by layer."""
        every = [(linear, layer) for linear in self.linears.values() for layer in linear.layers(self.base.spec)]
        return sorted(every, key=lambda pair: math.inf if pair[1] is None else pair[1])

    @property
    def largest(self) -> tuple[str, tuple[int, int]]:
        """The module whose SVD needs the most memory, and its shape."""
        sized = [(linear.at(layer), _shape(linear, self.base.spec)) for linear, layer in self.modules]
        return max(sized, key=lambda one: svd.memory(one[1], self.rank))

    @property
    def factor_bytes(self) -> int:
        """Bytes of the adapter at its full rank, held until it is written, and once more while it is."""
        return 2 * 4 * self.rank * sum(sum(_shape(linear, self.base.spec)) for linear, _ in self.modules)

    @property
    def peak_bytes(self) -> int:
        """Anonymous memory: one SVD, and the adapter."""
        return svd.memory(self.largest[1], self.rank) + self.factor_bytes

    @property
    def elements(self) -> int:
        """Elements of all modules together, by which progress is told."""
        return sum(self.size(linear) for linear, _ in self.modules)

    def size(self, linear: Linear) -> int:
        """Return the elements of one of its linears."""
        return math.prod(_shape(linear, self.base.spec))


def plan(
    tuned: SourceModel, base: SourceModel, *, rank: int, energy: float | None = None,
    targets: Sequence[str] | None = None, seed: int = 0,
) -> Extraction:  # fmt: skip
    """Return what would be extracted. Raises a MconvError that lists everything that stands against it."""
    if rank < 1:
        raise MconvError(f"--rank is {rank}; it must be at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise MconvError(f"--energy is {energy:g}; it is a share of the difference's squared norm, above 0 and at most 1")
    refuse(_unlike(tuned.spec, base.spec), doing=f"{tuned.name} is no finetune of {base.name}")
    spec, family = base.spec, base.family
    known = linears(family, spec)
    heads = {name: one for name, one in places(family, spec).items() if one.row.kind == "head"}
    names = _targets(targets, known, heads)
    wanted = {name: (known | heads)[name] for name in names}
    sizes = {name: _shape(linear, spec) for name, linear in wanted.items()}
    advice = "choose a lower rank, or other --target-modules"
    bad = [f"--rank {rank}: {name} is {m} x {n}, so its rank is at most {min(m, n)}; {advice}"
           for name, (m, n) in sizes.items() if rank > min(m, n)]  # fmt: skip
    bad += [f"{name}: its rows are tokens, and the vocabularies differ ({tuned.spec.vocab_size} and {spec.vocab_size})"
            for name in wanted if name in heads and tuned.spec.vocab_size != spec.vocab_size]  # fmt: skip
    refuse(bad, doing="no adapter can be made")
    return Extraction(tuned=tuned, base=base, linears=wanted, rank=rank, energy=energy, seed=seed)


def _targets(targets: Sequence[str] | None, known: Mapping[str, Linear], heads: Mapping[str, Linear]) -> tuple[str, ...]:
    """Return the names that `--target-modules` means: a head only where it is named."""
    if targets is None or ALL in targets:
        return tuple(known)
    try:
        return chosen(targets, {**known, **heads})
    except ConfigError as error:
        raise ConfigError(str(error).replace("lora_targets:", "--target-modules:")) from None


def _unlike(tuned: ModelSpec, base: ModelSpec) -> list[str]:
    """Return a sentence for each field of the architecture that an adapter cannot change."""
    fields = [field.name for field in dataclasses.fields(ModelSpec) if field.name not in MAY_DIFFER]
    pairs = ((name, getattr(tuned, name), getattr(base, name)) for name in fields)
    return [f"{name} is {one} in the tuned model and {two} in the base" for name, one, two in pairs if one != two]


def _shape(linear: Linear, spec: ModelSpec) -> tuple[int, int]:
    """Return outputs and inputs of a linear."""
    return math.prod(linear.dims(spec.sizes)), linear.axes.shape(spec.sizes)[1]


def extract(what: Extraction) -> tuple[Adapter, list[Kept]]:
    """Return the adapter, and what it keeps of each linear's difference. Raises MconvError if there is no difference."""
    found = {linear.at(layer): one_module(what, linear, layer) for linear, layer in what.modules}
    return adapter_of(what, found), [kept for kept, _ in found.values()]


def adapter_of(what: Extraction, found: Mapping[str, tuple[Kept, dict[str, Tensor]]]) -> Adapter:
    """Return the adapter whose modules are these. Raises MconvError if there is a difference in none of them."""
    if not any(kept.rank for kept, _ in found.values()):
        raise MconvError(f"{what.tuned.name} and {what.base.name} do not differ in any of {', '.join(what.linears)}")
    factors = {linear.key(layer, factor): one for linear, layer in what.modules
               for factor, one in found[linear.at(layer)][1].items()}  # fmt: skip
    settings = _settings(what, [kept for kept, _ in found.values()])
    return Adapter(settings=settings, family=what.base.family, spec=what.base.spec, factors=factors)


def one_module(what: Extraction, linear: Linear, layer: int | None) -> tuple[Kept, dict[str, Tensor]]:
    """Return A and B of one linear, the root of each singular value in both, and what they keep of its difference."""
    matrix = difference(what.tuned.source, what.base.source, linear, layer)
    shape, name = (matrix.shape[0], matrix.shape[1]), linear.at(layer)
    squared = _squared(matrix)
    if not math.isfinite(squared):
        raise MconvError(f"{name}: the difference holds NaN or infinity, so one of the two models does")
    if not squared:
        return Kept(module=name, shape=shape, rank=0, norm=0.0, energy=1.0, error=0.0), {}
    found = svd.leading(matrix, what.rank, seed=what.seed)
    rank = _rank(found.values, squared, what.energy)
    root = found.values[:rank].sqrt()
    a = (root[:, None] * found.right[:rank]).float().contiguous()
    b = (found.left[:, :rank] * root).float().contiguous()
    error = math.sqrt(_missed(matrix, a, b) / squared)
    energy = min(1.0, float(found.values[:rank].square().sum()) / squared)
    kept = Kept(module=name, shape=shape, rank=rank, norm=math.sqrt(squared), energy=energy, error=error)
    return kept, {"A": a, "B": b}


def difference(tuned: Source, base: Source, linear: Linear, layer: int | None) -> Float[Tensor, "outputs inputs"]:
    """Return what one linear of two models differs by, taken in fp64, rows in the order of the logical tensor."""
    logical, mine = Logical(linear.row.name, layer), linear.box(base.spec.sizes)
    shape = _shape(linear, base.spec)
    out = torch.empty(lengths(mine), dtype=svd.precision(shape))
    for box in boxes(mine):
        out[within(box, mine)] = tuned.pull(logical, box).double() - base.pull(logical, box)
    return out.view(shape)


def _rank(values: Float[Tensor, " k"], squared: float, energy: float | None) -> int:
    """Return how many triplets are kept: those above rounding, and no more than `energy` needs."""
    above = max(1, int((values > values[0] * 1e-12).sum()))
    if energy is None:
        return above
    enough = values.square().cumsum(0) >= energy * squared
    return min(above, int(enough.int().argmax()) + 1 if bool(enough.any()) else len(values))


def _rows(matrix: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Yield runs of a matrix's rows in fp64, and where they are."""
    step = max(1, (1 << 20) // matrix.shape[1])
    for start in range(0, matrix.shape[0], step):
        at = slice(start, start + step)
        yield matrix[at].double(), at


def _squared(matrix: Tensor) -> float:
    return sum(float(rows.square().sum()) for rows, _ in _rows(matrix))


def _missed(matrix: Tensor, a: Tensor, b: Tensor) -> float:
    """Return the squared norm of a matrix without B A."""
    wide = a.double()
    return sum(float((rows - b[at].double() @ wide).square().sum()) for rows, at in _rows(matrix))


def _settings(what: Extraction, kept: Sequence[Kept]) -> Settings:
    """Return settings by which each module's scale is 1: alpha is its rank. Modules of another rank are named."""
    ranks = {one.module: one.rank for one in kept}
    usual = Counter(rank for rank in ranks.values() if rank).most_common(1)[0][0]
    names = [name for name, linear in what.linears.items()
             if any(ranks[linear.at(layer)] for layer in linear.layers(what.base.spec))]  # fmt: skip
    every = [what.linears[name].at(layer) for name in names for layer in what.linears[name].layers(what.base.spec)]
    own = {module: (ranks[module], float(ranks[module] or usual)) for module in every if ranks[module] != usual}
    return Settings(rank=usual, alpha=float(usual), targets=tuple(names), own=own)


# ---- what no adapter holds -------------------------------------------------------------------------------------------
def left_out(what: Extraction) -> list[LeftOut]:
    """Return every tensor beside the linears with an adapter in which the models differ, the most changed first."""
    covered = {f"{linear.at(layer)}.weight" for linear, layer in what.modules}
    ours, theirs = (unfused(one.family, one.spec) for one in (what.tuned, what.base))
    found = []
    for key in dict.fromkeys([*ours, *theirs]):
        if key in covered:
            continue
        if key in ours and key in theirs and ours[key].box == theirs[key].box:
            apart = _relative(what.tuned.source, what.base.source, ours[key])
            found += [LeftOut(key=key, relative_norm=apart)] if apart else []
        else:
            found.append(LeftOut(key=key, relative_norm=None))
        forget()
    return sorted(found, key=lambda one: -math.inf if one.relative_norm is None else -one.relative_norm)


def _relative(tuned: Source, base: Source, tensor: Unfused) -> float:
    """Return the norm of a tensor's difference over that of the base."""
    apart = own = 0.0
    for box in boxes(tensor.box):
        one = base.pull(tensor.logical, box).double()
        own += float(one.square().sum())
        apart += float((tuned.pull(tensor.logical, box).double() - one).square().sum())
    return math.sqrt(apart / own) if own else math.inf if apart else 0.0


def summary(kept: Sequence[Kept]) -> dict[str, float]:
    """Return what of a difference several modules keep together: `norm`, `energy`, `error`."""
    squared = sum(one.norm**2 for one in kept)
    missed = sum((one.norm * one.error) ** 2 for one in kept)
    energy = sum(one.norm**2 * one.energy for one in kept)
    if not squared:
        return {"norm": 0.0, "energy": 1.0, "error": 0.0}
    return {"norm": math.sqrt(squared), "energy": energy / squared, "error": math.sqrt(missed / squared)}


def by_layer(what: Extraction, kept: Sequence[Kept]) -> list[dict[str, Any]]:
    """Return the summary of each layer, with its `name`, in order."""
    layers: dict[str, list[Kept]] = {}
    for (_, layer), one in zip(what.modules, kept, strict=True):
        layers.setdefault("head" if layer is None else f"layer {layer}", []).append(one)
    return [{"name": name, **summary(group)} for name, group in layers.items()]
