"""What a family's table is made of: rows, each one logical tensor and what Hugging Face stores of it."""

import dataclasses
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mconv.convert.derived import MASKS, Buffer
from mconv.convert.keys import Biases, Config, Key
from mconv.errors import ConfigError, refuse
from mconv.shard.axes import Axes, parse
from mconv.shard.cut import Piece
from mconv.shard.pattern import Pattern, piece
from mconv.shard.pattern import parse as pattern_of
from mconv.spec import ModelSpec

LONGEST = 80
"""Characters of a config key that a message shows."""


Spelt = str | Mapping[str, str]
"""What a program calls a tensor that it stores as it is; or each of several names, and the pattern of what it holds."""


def patterns(spelt: Spelt, axes: str) -> Mapping[str, Pattern]:
    """Return each name and what it holds of a tensor with these axes."""
    return {name: pattern_of(text) for name, text in ({spelt: axes} if isinstance(spelt, str) else spelt).items()}


@dataclass(frozen=True, slots=True)
class Logical:
    """The name of one logical tensor: a row of the table, a layer (None outside the layers), weight or bias."""

    row: str
    layer: int | None = None
    leaf: str = "weight"

    def __str__(self) -> str:
        place = self.row if self.layer is None else self.row.replace("layer.", f"layer.{self.layer}.", 1)
        return f"{place}.{self.leaf}"


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored tensor: its key in a format, the logical tensor that it holds a piece of, and which piece."""

    key: str
    logical: Logical
    piece: Piece


@dataclass(frozen=True, slots=True)
class Row:
    """One logical tensor: its axes, the axis that tensor parallelism cuts, and what Hugging Face calls it.

    `hf`: the module that holds it as it is; or each module, and the pattern (`shard/pattern.py`) of what it holds. Where
    a family has several names for one tensor, it has several rows, of which `when` and `unless` leave one.
    """

    name: str
    axes: str
    cut: str
    hf: Spelt
    bias: str | None = None
    """The ModelSpec field that says whether there is a bias: the same row without the input axis."""
    unless: str | None = None
    """The ModelSpec field that makes this row absent."""
    when: str | None = None
    """The ModelSpec field without which this row is absent."""

    def leaves(self, spec: ModelSpec) -> list[str]:
        """`weight`, `bias`, both or neither: what this architecture has of the row."""
        if (self.unless and getattr(spec, self.unless)) or (self.when and not getattr(spec, self.when)):
            return []
        return ["weight", "bias"] if self.bias and getattr(spec, self.bias) else ["weight"]

    def axes_of(self, leaf: str) -> Axes:
        axes = parse(self.axes)
        return axes.without_input() if leaf == "bias" else axes

    @property
    def per_layer(self) -> bool:
        return self.name.startswith("layer.")

    @property
    def modules(self) -> Mapping[str, Pattern]:
        """The Hugging Face modules of this row, and what each holds of it."""
        return patterns(self.hf, self.axes)

    def pieces(self, axes: Axes, sizes: dict[str, int]) -> Iterator[tuple[str, Piece]]:
        """The Hugging Face modules of this row and the piece that each holds; `axes`: the weight's, or fewer."""
        for module, pattern in self.modules.items():
            yield module, piece(axes, sizes, pattern.only(axes.names))


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """An architecture of Hugging Face: both directions of a conversion follow from these two tables."""

    name: str
    model_type: str
    architecture: str
    rows: tuple[Row, ...]
    config: tuple[Key, ...]
    base: str
    """A prefix of names that files of the model without its head leave out."""
    headless: str
    """What transformers calls the model without its head."""
    buffers: tuple[Buffer, ...] = MASKS
    """What old files hold besides weights and that follows from the config."""
    hub_code: str | None = None
    """`auto_map` entries (a regex) that name a copy of transformers' own code, as the Hub has them. Never run."""

    def row(self, name: str) -> Row:
        """A row of that name: all of them have the same axes."""
        return next(row for row in self.rows if row.name == name)

    def logicals(self, spec: ModelSpec) -> list[Logical]:
        """Every logical tensor of the architecture, in the order of its forward pass."""
        return [logical for _, logical in self._walk(spec)]

    def _walk(self, spec: ModelSpec) -> list[tuple[Row, Logical]]:
        inside = [row for row in self.rows if row.per_layer]
        first = self.rows.index(inside[0])
        walk: list[tuple[Row, int | None]] = [(row, None) for row in self.rows[:first]]
        walk += [(row, layer) for layer in range(spec.num_layers) for row in inside]
        walk += [(row, None) for row in self.rows[first:] if not row.per_layer]
        return [(row, Logical(row.name, layer, leaf)) for row, layer in walk for leaf in row.leaves(spec)]

    def stored(self, spec: ModelSpec) -> list[Stored]:
        """Every tensor of the Hugging Face checkpoint and the piece of a logical tensor that it holds."""
        return [
            Stored(f"{module.format(i=logical.layer)}.{logical.leaf}", logical, piece)
            for row, logical in self._walk(spec)
            for module, piece in row.pieces(self.axes(logical), spec.sizes)
        ]

    @property
    def head_key(self) -> str:
        """What Hugging Face calls the head's weight."""
        return f"{next(iter(self.row('head').modules))}.weight"

    def axes(self, logical: Logical) -> Axes:
        return self.row(logical.row).axes_of(logical.leaf)

    def expressible(self, spec: ModelSpec) -> ModelSpec:
        """The spec with the biases that this family's config can say; one that is added is zero in a conversion."""
        groups = [key.spec for key in self.config if isinstance(key, Biases)]
        added: dict[str, Any] = {name: True for group in groups if any(getattr(spec, n) for n in group) for name in group}
        return dataclasses.replace(spec, family=self.name, **added)

    def read_config(self, config: Config, ignore: Collection[str] = ()) -> ModelSpec:
        """Return the spec that `config.json` describes.

        Raises ConfigError on every key that no row of the table claims and that is not in `ignore`.
        """
        fields, left = self._claim(config)
        if unknown := {name: value for name, value in left.items() if name not in ignore}:
            unclaimed = ", ".join(f"{_shown(name)}={repr(value)[:60]}" for name, value in unknown.items())
            flags = " ".join(f"--ignore-config-key {shlex.quote(_shown(name))}" for name in unknown)
            raise ConfigError(
                f"config.json: mconv does not know {unclaimed} of a {self.name} model, and cannot tell whether it "
                f"changes what the model computes. If it does not: {flags}"
            )
        return ModelSpec(**fields)

    def passed_over(self, config: Config, ignore: Collection[str]) -> Config:
        """Return the keys of `config.json` that `ignore` names and no row claims, with their values."""
        return {name: value for name, value in self._claim(config)[1].items() if name in ignore}

    def _claim(self, config: Config) -> tuple[dict[str, Any], Config]:
        """Return the fields of the spec, and the keys that no row claims. A null says nothing and is not among them."""
        left = dict(config)
        fields: dict[str, Any] = {"family": self.name}
        for key in self.config:
            fields.update(key.read(left))
        return fields, {name: value for name, value in left.items() if value is not None}

    def write_config(self, spec: ModelSpec) -> Config:
        """The `config.json` of a spec: the same table, read backwards. Raises ConfigError on what it cannot say."""
        out: Config = {"architectures": [self.architecture], "model_type": self.model_type}
        for key in self.config:
            key.write(spec, out)
        told = self.read_config(out)
        names = (f.name for f in dataclasses.fields(ModelSpec))
        lost = [
            f"{n} {getattr(spec, n)} would be {getattr(told, n)}" for n in names if getattr(told, n) != getattr(spec, n)
        ]
        refuse(lost, doing=f"a {self.architecture} cannot be like this model", kind=ConfigError)
        return out


def _shown(name: str) -> str:
    """A key of a config.json as a message may show it: on one line, and not too long."""
    return name if name.isprintable() and len(name) <= LONGEST else ascii(name)[:LONGEST]
