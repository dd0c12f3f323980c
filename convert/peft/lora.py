"""LoRA: which linears of a family may have an adapter, what the two factors of each are called, and their shapes.

An adapter adds scale * B A x to what a linear of Hugging Face's model makes of x. Megatron fuses some of these linears
(query, key and value; gate and up); an adapter stays with the part that it is of, as PEFT has it.
"""

from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from mconv.convert.peft.settings import Settings
from mconv.convert.spelling.table import Family, Row
from mconv.errors import ConfigError, refuse
from mconv.shard.axes import Axes, Box, lengths
from mconv.shard.pattern import Pattern
from mconv.spec import ModelSpec

LINEARS = ("column", "row")
"""The linears of a layer. PEFT's "all-linear" means these, and neither embedding nor head."""
OUTSIDE = ("embedding", "positions", "head")
"""Other kinds of rows that an adapter may lie on: it can be merged, but mconv does not train it."""
ALL = "all-linear"
FACTORS = ("A", "B")
PREFIX = "base_model.model."
"""PEFT's, before the name of a module."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear of Hugging Face's layer: the logical tensor that it fills, and what of it."""

    module: str
    """The module's name, with `{l}` for the layer."""
    row: Row
    pattern: Pattern
    name: str
    """The name in `lora_targets`: the last part of the module's name, or the last two where two linears share one."""

    @property
    def slot(self) -> str:
        """The name without dots, which would be read as children: in a model, and in the keys of a run's checkpoint."""
        return self.name.replace(".", "_")

    @property
    def column(self) -> bool:
        """True where tensor parallelism cuts the outputs, False where it cuts the inputs."""
        return self.row.cut in self.axes.groups[0]

    @property
    def axes(self) -> Axes:
        """The axes of the logical tensor."""
        return self.row.axes_of("weight")

    @property
    def parted(self) -> str | None:
        """The axis that it shares with other linears, or None: the logical tensor is its own."""
        return next((term.axis for term in self.pattern.terms() if term.part), None)

    @property
    def reordered(self) -> bool:
        """True where Hugging Face's axes are in another order than the logical tensor's (a transposed matrix)."""
        return tuple(term.axis for term in self.pattern.terms()) != self.axes.names

    def box(self, sizes: Mapping[str, int]) -> Box:
        """The part of the logical tensor that it fills."""
        held = {term.axis: term.range(sizes) for term in self.pattern.terms()}
        return tuple(held[axis] for axis in self.axes.names)

    def dims(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Sizes of the axes that are fused in its output."""
        return lengths(self.box(sizes))[: len(self.axes.groups[0])]

    def shape(self, factor: str, *, rank: int, sizes: dict[str, int]) -> tuple[int, int]:
        """(rank, inputs) of A, (outputs, rank) of B."""
        inputs = self.axes.shape(sizes)[1]
        return (rank, inputs) if factor == "A" else (prod(self.dims(sizes)), rank)

    def even(self, sizes: Mapping[str, int], tp: int) -> bool:
        """Return whether each of `tp` ranks has whole slices of the axis that is cut; else ranks share a query group."""
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

    def key(self, layer: int | None, factor: str) -> str:
        """Return what PEFT calls a factor of layer number `layer`."""
        return f"{PREFIX}{self.at(layer)}.lora_{factor}.weight"

    def at(self, layer: int | None) -> str:
        """Return the full name of the module in layer number `layer`."""
        return self.module.format(l=layer)

    def layers(self, spec: ModelSpec) -> Sequence[int | None]:
        """Return the layers that have this linear: None alone if it lies outside them."""
        return range(spec.num_layers) if self.row.per_layer else [None]


def linears(family: Family, spec: ModelSpec) -> dict[str, Linear]:
    """Return every linear of a family's layer by its name, in the order of the table."""
    return _named(family, spec, LINEARS)


def places(family: Family, spec: ModelSpec) -> dict[str, Linear]:
    """Return every module that an adapter may lie on: the linears of a layer, then embeddings and head."""
    return linears(family, spec) | _named(family, spec, OUTSIDE)


def _named(family: Family, spec: ModelSpec, kinds: tuple[str, ...]) -> dict[str, Linear]:
    rows = [row for row in family.rows if row.kind in kinds and row.leaves(spec)]
    parts = [(module, row, pattern) for row in rows for module, pattern in row.modules.items()]
    last = Counter(module.rpartition(".")[2] for module, *_ in parts)
    found = [Linear(*one, name=".".join(one[0].split(".")[-1 if last[one[0].rpartition(".")[2]] == 1 else -2 :]))
             for one in parts]  # fmt: skip
    return {linear.name: linear for linear in found}


def chosen(targets: Sequence[str] | None, known: Mapping[str, Linear]) -> tuple[str, ...]:
    """The names that `targets` mean, in the order of the table. Raises ConfigError on one that the model has not."""
    if targets is None or ALL in targets:
        return tuple(known)
    meant = {name: [one for one in known if one == name or one.endswith(f".{name}")] for name in targets}
    wrong = [f"lora_targets: the model has no {name!r}; it has {', '.join(known)}, or {ALL!r} for them all"
             for name, found in meant.items() if not found]  # fmt: skip
    refuse(wrong, doing="choosing the linears that get an adapter", kind=ConfigError)
    return tuple(name for name in known if any(name in found for found in meant.values()))


def modules(settings: Settings, family: Family, spec: ModelSpec) -> Iterator[tuple[Linear, int | None, int]]:
    """Yield every module that has an adapter: its linear, its layer, and its adapter's rank."""
    known = places(family, spec)
    for name in settings.targets:
        for layer in known[name].layers(spec):
            if rank := settings.rank_of(known[name].at(layer)):
                yield known[name], layer, rank


def shapes(settings: Settings, family: Family, spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """Return the shape of every factor of an adapter, under PEFT's names."""
    return {linear.key(layer, factor): linear.shape(factor, rank=rank, sizes=spec.sizes)
            for linear, layer, rank in modules(settings, family, spec) for factor in FACTORS}  # fmt: skip


def of_args(common: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the args of a checkpoint say of the adapter that it holds; None if it holds a model.

    Another program may have an arg of that name: then it is one that no table claims.
    """
    found = getattr(common.get("args"), "lora", None)
    return found if isinstance(found, dict) and isinstance(found.get("base"), dict) else None


def without_args(common: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint of an adapter has in common, with the args of the model that it is of."""
    kept = {name: value for name, value in vars(common["args"]).items() if name != "lora"}
    return {**common, "args": Namespace(**kept)}


def stacked_key(linear: Linear, factor: str) -> str:
    """Return what a run's checkpoint calls a factor of all layers, stacked on axis 0 as megatron-core has it."""
    return f"decoder.layers.lora.{linear.slot}.{factor}"
