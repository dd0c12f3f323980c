"""A family's table: rows, each one logical tensor and what Hugging Face stores of it."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, Literal

from mconv.convert.spelling.claim import accept, claim, written
from mconv.convert.spelling.derived import MASKS, Buffer
from mconv.convert.spelling.keys import Biases, Config, Key, Left
from mconv.convert.spelling.spelled import Spelt, patterns, spelled
from mconv.errors import ConfigError, refuse
from mconv.shard.axes import Axes, parse
from mconv.shard.cut import Piece
from mconv.shard.pattern import Pattern
from mconv.spec import ModelSpec

Kind = Literal["embedding", "positions", "norm", "column", "row", "head"]
"""The kind of a row: a table of vectors to look up, of tokens or of positions; a norm; a linear whose outputs ranks share
(column-parallel), or whose inputs they share, and whose output is added to the hidden states (row-parallel); the head."""
LOOKED_UP: Mapping[str, Kind] = {"v": "embedding", "m": "positions"}
"""The axis that a table counts, and what it is a table of."""


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
    cuts: str | Mapping[str, str]
    """The axis that tp cuts (empty: none); or of each kind of ranks (`tp`, `ep`) the axis that it cuts."""
    hf: Spelt
    bias: str | None = None
    """The ModelSpec field that says whether there is a bias: the same row without the input axis."""
    unless: str | None = None
    """The ModelSpec field that makes this row absent."""
    when: str | None = None
    """The ModelSpec field without which this row is absent."""
    kind: Kind = None  # type: ignore[assignment]
    """The row's kind. Only a head must state it; that of all others follows from axes and cuts (`_kind`)."""

    def __post_init__(self) -> None:
        if self.kind is None:
            object.__setattr__(self, "kind", self._kind())

    def _kind(self) -> Kind:
        """Return what it is by its axes: a vector is a norm; a matrix is a table, or a linear by the axis that is cut."""
        axes = parse(self.axes)
        if len(axes.groups) == 1:
            return "norm"
        return LOOKED_UP.get(axes.names[0]) or ("row" if self.cut in axes.groups[-1] else "column")

    @property
    def looked_up(self) -> bool:
        """True for a table of vectors, of tokens or of positions, from which the first layer's input is made."""
        return self.kind in LOOKED_UP.values()

    @property
    def cut(self) -> str:
        """The axis that tensor parallelism cuts; empty: none."""
        return self.cuts if isinstance(self.cuts, str) else self.cuts.get("tp", "")

    def leaves(self, spec: ModelSpec) -> list[str]:
        """`weight`, `bias`, both or neither: what this architecture has of the row."""
        if (self.unless and getattr(spec, self.unless)) or (self.when and not getattr(spec, self.when)):
            return []
        return ["weight", "bias"] if self.bias and getattr(spec, self.bias) else ["weight"]

    def axes_of(self, leaf: str) -> Axes:
        axes = parse(self.axes)
        return axes.without_input() if leaf == "bias" else axes

    @property
    def output(self) -> Axes:
        """The axes of what its module gives: a norm's own, or a linear's without those that it sums over."""
        return self.axes_of("weight" if self.kind == "norm" else "bias")

    @property
    def per_layer(self) -> bool:
        """True for a row that each layer has: Hugging Face enumerates the layers in its name."""
        return "{l}" in next(iter(self.modules))

    @property
    def modules(self) -> Mapping[str, Pattern]:
        """The Hugging Face modules of this row, and what each holds of it."""
        return patterns(self.hf, parse(self.axes))


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch that reads a layer's hidden states and is added to them: rows in the order of the forward pass."""

    rows: tuple[Row, ...]

    @property
    def norm(self) -> Row | None:
        """The norm that reads the hidden states; None: it shares that of the branch before."""
        return self.rows[0] if self.rows[0].kind == "norm" else None

    @property
    def column(self) -> Row:
        """The linear that reads what the norm gives."""
        return next(row for row in self.rows if row.kind == "column")

    @property
    def inner(self) -> tuple[Row, ...]:
        """The rows between the two linears: norms of query and key heads."""
        return self.rows[self.rows.index(self.column) + 1 : -1]

    @property
    def row(self) -> Row:
        """The linear whose output is added to the hidden states."""
        return self.rows[-1]

    @property
    def attends(self) -> bool:
        """True for attention, which has query groups."""
        return "g" in parse(self.column.axes).names


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
    """The name in transformers of the model without its head."""
    buffers: tuple[Buffer, ...] = MASKS
    """Tensors of old files that follow from the config and are no weights."""
    hub_code: str | None = None
    """`auto_map` entries (a regex) that name a copy of transformers' own code, as the Hub has them. Never run."""

    def row(self, name: str) -> Row:
        """A row of that name: all of them have the same axes."""
        return next(row for row in self.rows if row.name == name)

    def logicals(self, spec: ModelSpec) -> list[Logical]:
        """Every logical tensor of the architecture, in the order of its forward pass."""
        return [logical for _, logical in self._walk(spec)]

    def _walk(self, spec: ModelSpec) -> Iterator[tuple[Row, Logical]]:
        for per_layer, group in groupby(self.rows, lambda row: row.per_layer):
            rows = list(group)
            for layer in range(spec.num_layers) if per_layer else [None]:
                yield from ((row, Logical(row.name, layer, leaf)) for row in rows for leaf in row.leaves(spec))

    def stored(self, spec: ModelSpec) -> list[Stored]:
        """Every tensor of the Hugging Face checkpoint and the piece of a logical tensor that it holds."""
        return [
            Stored(f"{module}.{logical.leaf}", logical, piece)
            for row, logical in self._walk(spec)
            for module, piece in spelled(row.hf, row.axes_of(logical.leaf), spec.sizes, layer=logical.layer)
        ]

    def branches(self, spec: ModelSpec) -> list[Branch]:
        """Return what a layer of the architecture adds to its hidden states, in order."""
        rows = [row for row in self.rows if row.per_layer and row.leaves(spec)]
        ends = [0, *(i + 1 for i, row in enumerate(rows) if row.kind == "row")]
        return [Branch(tuple(rows[start:stop])) for start, stop in pairwise(ends)]

    # What there is one of, by what it is.
    @property
    def embedding(self) -> Logical:
        """The table of tokens."""
        return self._outside("embedding")

    @property
    def final_norm(self) -> Logical:
        """The norm behind the layers."""
        return self._outside("norm")

    @property
    def head(self) -> Logical:
        """The linear that makes the scores of the vocabulary; in a tied model the embedding does."""
        return self._outside("head")

    def _outside(self, kind: Kind) -> Logical:
        return next(Logical(row.name) for row in self.rows if row.kind == kind and not row.per_layer)

    def module(self, logical: Logical) -> str:
        """Return the Hugging Face module that holds a tensor, or the first of them."""
        return next(iter(self.row(logical.row).modules)).format(l=logical.layer)

    def layer_module(self, layer: int) -> str:
        """Return what Hugging Face calls a layer."""
        inside = next(name for row in self.rows for name in row.modules if row.per_layer)
        return inside.partition("{l}")[0] + str(layer)

    @property
    def head_key(self) -> str:
        """Hugging Face's name of the head's weight."""
        return f"{self.module(self.head)}.weight"

    @property
    def embedding_key(self) -> str:
        """Hugging Face's name of the embedding's weight."""
        return f"{self.module(self.embedding)}.weight"

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
        return self.read(config, ignore)[0]

    def read(
        self, config: Config, ignore: Collection[str] = (), recorded: Mapping[str, Any] | None = None
    ) -> tuple[ModelSpec, Config]:
        """Return the spec, and the keys that no row claims and that `ignore` or a manifest (`recorded`) lets pass."""
        fields, left = self._claim(config, ignore)
        passed = accept(left, of=f"a {self.name} model", ignore=ignore, recorded=recorded)
        return ModelSpec(**fields), passed

    def _claim(self, config: Config, ignore: Collection[str] = ()) -> tuple[Config, Left]:
        """Return the fields of the spec, and the keys that no row claims. A null says nothing and is not among them."""
        left = Left(config)
        fields = {"family": self.name, **claim(self.config, left, ignore=ignore)}
        return fields, Left({name: value for name, value in left.items() if value is not None})

    def write_config(self, spec: ModelSpec) -> Config:
        """The `config.json` of a spec: the same table, read backwards. Raises ConfigError on what it cannot say."""
        named = {"architectures": [self.architecture], "model_type": self.model_type}
        out = named | written(self.config, spec)
        back = self.read_config(out)
        names = (f.name for f in dataclasses.fields(ModelSpec))
        lost = [
            f"{n} {getattr(spec, n)} would be {getattr(back, n)}" for n in names if getattr(back, n) != getattr(spec, n)
        ]
        refuse(lost, doing=f"a {self.architecture} cannot be like this model", kind=ConfigError)
        return out
