"""LoRA: which linears of a family may have an adapter, what the two factors of each are called, and their shapes.

An adapter adds scale * B A x to what a linear of Hugging Face's model makes of x. Megatron fuses some of these linears
(query, key and value; gate and up); an adapter stays with the part that it is of, as PEFT has it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mconv.convert.table import Family, Logical, Row
from mconv.errors import ConfigError, FormatError, refuse
from mconv.shard.axes import Box, intersect, lengths, whole, within
from mconv.spec import ModelSpec

ROWS = ("layer.qkv", "layer.attn_out", "layer.mlp_in", "layer.mlp_out")
"""The linears of a layer. Embedding and head have none: PEFT's "all-linear" leaves them out too."""
ALL = "all-linear"
FACTORS = ("A", "B")
PREFIX = "base_model.model."
"""PEFT's, before the name of a module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What makes an adapter, beside its factors."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Names of linears, as `linears` has them and in its order."""
    dropout: float = 0.0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` reads them back."""
        return {"rank": self.rank, "alpha": self.alpha, "targets": list(self.targets), "dropout": self.dropout}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Settings":
        return cls(
            rank=values["rank"], alpha=values["alpha"], targets=tuple(values["targets"]), dropout=values["dropout"]
        )

    def __str__(self) -> str:
        return f"rank {self.rank}, alpha {self.alpha:g}, on {', '.join(self.targets)}"


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear of Hugging Face's layer: the logical tensor that it fills, and [start, stop) of axis `row.cat` there."""

    module: str
    """Its name, with `{i}` for the layer."""
    row: Row
    start: int
    stop: int

    @property
    def name(self) -> str:
        """What `lora_targets` calls it: the last part of the module's name."""
        return self.module.rpartition(".")[2]

    @property
    def column(self) -> bool:
        """Whether tensor parallelism cuts what it makes; else what it takes."""
        return self.row.cut in self.row.axes_of("weight").groups[0]

    def dims(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Sizes of the axes that are fused in its output."""
        mine = {**sizes, self.row.cat or "": self.stop - self.start}
        return tuple(mine[axis] for axis in self.row.axes_of("weight").groups[0])

    def shape(self, factor: str, *, rank: int, sizes: dict[str, int]) -> tuple[int, int]:
        """(rank, inputs) of A, (outputs, rank) of B."""
        inputs = self.row.axes_of("weight").shape(sizes)[1]
        return (rank, inputs) if factor == "A" else (prod(self.dims(sizes)), rank)

    def even(self, sizes: Mapping[str, int], tp: int) -> bool:
        """Whether each of `tp` ranks has whole slices of the axis that is cut; else ranks share a query group."""
        return sizes[self.row.cut] % tp == 0

    def cut_axis(self, factor: str, sizes: Mapping[str, int], tp: int) -> int | None:
        """The axis of a factor that tensor parallelism cuts, or None: every rank has it whole."""
        if self.column:
            return 0 if factor == "B" and self.even(sizes, tp) else None
        return 1 if factor == "A" else None

    def share(self, factor: str, *, rank: int, sizes: dict[str, int], tp: int) -> tuple[int, int]:
        """The shape of what each of `tp` ranks has of a factor."""
        rows, columns = self.shape(factor, rank=rank, sizes=sizes)
        axis = self.cut_axis(factor, sizes, tp)
        return (rows // tp if axis == 0 else rows, columns // tp if axis == 1 else columns)

    def key(self, layer: int, factor: str) -> str:
        """What PEFT calls a factor of layer number `layer`."""
        return f"{PREFIX}{self.module.format(i=layer)}.lora_{factor}.weight"


def linears(family: Family, spec: ModelSpec) -> dict[str, Linear]:
    """Every linear of a family's layer by its name, in the order of the table."""
    rows = [row for row in family.rows if row.name in ROWS and row.leaves(spec)]
    if any(row.hf_axes for row in rows):
        raise ConfigError(
            f"mconv has no LoRA for {family.architecture}, whose linears are transposed and of which two share a name"
        )
    found = [Linear(module, row, start, stop) for row in rows for module, start, stop in row.parts(spec.sizes)]
    return {linear.name: linear for linear in found}


def chosen(targets: Sequence[str] | None, known: Mapping[str, Linear]) -> tuple[str, ...]:
    """The names that `targets` mean, in the order of the table. Raises ConfigError on one that the model has not."""
    if targets is None or ALL in targets:
        return tuple(known)
    wrong = [f"lora_targets: the model has no {name!r}; it has {', '.join(known)}, or {ALL!r} for them all"
             for name in targets if name not in known]  # fmt: skip
    refuse(wrong, doing="choosing the linears that get an adapter", kind=ConfigError)
    return tuple(name for name in known if name in targets)


def shapes(settings: Settings, family: Family, spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """The shape of every factor of an adapter, under PEFT's names."""
    known = linears(family, spec)
    return {known[name].key(layer, factor): known[name].shape(factor, rank=settings.rank, sizes=spec.sizes)
            for layer in range(spec.num_layers) for name in settings.targets for factor in FACTORS}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A whole adapter, unsharded: both factors of each target in each layer, under PEFT's names."""

    settings: Settings
    family: Family
    spec: ModelSpec
    factors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        """Refuse, all at once, factors that are missing, too many, or of another shape."""
        wanted = shapes(self.settings, self.family, self.spec)
        bad = [f"{key} is missing" for key in wanted if key not in self.factors]
        bad += [f"{key}: no linear of this model has it" for key in self.factors if key not in wanted]
        bad += [f"{key} is {tuple(have.shape)}; the model and a rank of {self.settings.rank} make it {wanted[key]}"
                for key, have in self.factors.items() if key in wanted and tuple(have.shape) != wanted[key]]  # fmt: skip
        bad += [f"{key} holds NaN or infinity" for key, have in self.factors.items() if not bool(have.isfinite().all())]
        refuse(bad, doing="the adapter does not fit the model", kind=FormatError)

    def merged(self, logical: Logical, box: Box, base: Tensor) -> Tensor:
        """A box of W + scale * B A, one dimension for each elementary axis: in fp64, rounded once to the base's dtype."""
        known = linears(self.family, self.spec)
        mine = [known[name] for name in self.settings.targets if known[name].row.name == logical.row]
        if logical.layer is None or logical.leaf != "weight" or not mine:
            return base
        wide = base.to(torch.float64, copy=True)
        for linear in mine:
            self._add(wide, linear, logical.layer, box)
        return wide.to(base.dtype)

    def _add(self, wide: Tensor, linear: Linear, layer: int, box: Box) -> None:
        """Add what one linear's adapter adds to a box of the tensor, where they meet."""
        axes = linear.row.axes_of("weight")
        mine = tuple((linear.start, linear.stop) if axis == linear.row.cat else span
                     for axis, span in zip(axes.names, whole(axes.dims(self.spec.sizes)), strict=True))  # fmt: skip
        both = intersect(mine, box)
        if both is None:
            return
        split = len(axes.groups[0])
        b = _cut(self.factors[linear.key(layer, "B")], mine[:split], both[:split])
        a = _cut(self.factors[linear.key(layer, "A")].t(), mine[split:], both[split:])
        wide[within(both, box)] += self.settings.scale * (b @ a.t()).view(lengths(both))


def _cut(factor: Float[Tensor, "fused r"], mine: Box, both: Box) -> Float[Tensor, "rows r"]:
    """The rows of a factor that a box has, fp64: `mine` are the ranges of the axes that are fused in its rows."""
    return factor.double().reshape(*lengths(mine), -1)[within(both, mine)].reshape(-1, factor.shape[1])


def of_args(common: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the args of a checkpoint say of the adapter that it holds; None if it holds a model."""
    found: dict[str, Any] | None = getattr(common.get("args"), "lora", None)
    return found


def stacked_key(name: str, factor: str) -> str:
    """What a run's checkpoint calls a factor of all layers, stacked on axis 0 as megatron-core has it."""
    return f"decoder.layers.lora.{name}.{factor}"


def unstacked(settings: Settings, known: Mapping[str, Linear], stacks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The factors of a checkpoint, layer by layer under PEFT's names."""
    return {
        known[name].key(layer, factor): each
        for name in settings.targets
        for factor in FACTORS
        for layer, each in enumerate(torch.unbind(stacks[stacked_key(name, factor)]))
    }
