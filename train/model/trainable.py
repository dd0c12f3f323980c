"""The weights that a run trains, and where gradients flow: a frozen linear keeps no input and has no gradient."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from mconv.convert.dialects import mcore
from mconv.convert.families import FAMILIES
from mconv.convert.peft.lora import Linear, Settings, linears
from mconv.convert.spelling.table import Logical
from mconv.errors import ConfigError
from mconv.spec import ModelSpec
from mconv.train.config.trainable import PARTS, means


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable:
    """The weights that a run trains: all; those that `freeze` does not name; or only those of an `adapter`."""

    freeze: tuple[str, ...] = ()
    adapter: Settings | None = None

    def has(self, logical: Logical) -> bool:
        """Return whether a tensor of the model itself is trained."""
        return self.adapter is None and not any(means(word, name_of(logical)) for word in self.freeze)

    def embeds(self, spec: ModelSpec) -> bool:
        """Return whether an embedding is trained: of tokens or of positions."""
        return any(self.has(Logical(row.name)) for row in FAMILIES[spec.family].rows if row.looked_up)

    def scores(self, spec: ModelSpec) -> bool:
        """Return whether the matrix is trained that makes the scores of the vocabulary."""
        family = FAMILIES[spec.family]
        return self.has(family.embedding if spec.tied_embeddings else family.head)

    def final_norm(self, spec: ModelSpec) -> bool:
        """Return whether the norm behind the layers is trained."""
        return self.has(FAMILIES[spec.family].final_norm)

    def adapters(self, spec: ModelSpec, row: str | None = None) -> list[Linear]:
        """Return the linears of a layer, or of one of its rows, that have an adapter."""
        if self.adapter is None:
            return []
        known = linears(FAMILIES[spec.family], spec)
        return [known[name] for name in self.adapter.targets if row in (None, known[name].row.name)]


ALL = Trainable()


def name_of(logical: Logical) -> str:
    """Return megatron-core's name of a tensor, its layer counted through the whole model."""
    return mcore.NAMES[logical.row][0].format(l=logical.layer, leaf=logical.leaf)


def check(trained: Trainable, spec: ModelSpec) -> None:
    """Refuse words of `freeze` that name no weight, or leave none. Raises ConfigError, as the run itself."""
    tensors = FAMILIES[spec.family].logicals(spec)
    names = [name_of(logical) for logical in tensors]
    refuse_unknown(trained.freeze, {word for word in trained.freeze if any(means(word, name) for name in names)}, names)
    if trained.freeze and not any(trained.has(logical) for logical in tensors):
        raise ConfigError(f"freeze: {', '.join(trained.freeze)} leaves nothing to train")


def refuse_unknown(words: Iterable[str], found: set[str], names: list[str]) -> None:
    """Refuse words of `freeze` that are not among those `found` to name a weight; `names` are some that would do."""
    if unknown := [word for word in words if word not in found]:
        raise ConfigError(
            f"freeze: {', '.join(map(repr, unknown))} names no weight of this model; there are {', '.join(PARTS)}, "
            f"layers.N, layers.N-M, and patterns of names such as {names[0]!r}"
        )


@dataclass(frozen=True, slots=True)
class Way:
    """A branch of one layer: which of the tensors on its way ask for a gradient."""

    normed: bool
    """True if the output of the branch's norm asks for a gradient."""
    inner: bool
    """True if the tensors between the branch's two linears ask for a gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One layer: which linears' weights are trained, and what on its way asks for a gradient."""

    weights: frozenset[str]
    """Rows whose weight is trained."""
    ways: tuple[Way, ...]
    """Gradients of each of the layer's branches (`Family.branches`)."""
    leaves: bool
    """True if the layer's output asks for a gradient."""


@lru_cache(maxsize=4096)  # a plan asks for the same layers at many layouts
def flow(spec: ModelSpec, trained: Trainable, layer: int, *, enters: bool) -> Flow:
    """Return where gradients flow in a layer; `enters`: whether its input asks for one."""
    family = FAMILIES[spec.family]
    own = [logical for logical in family.logicals(spec) if logical.layer == layer and trained.has(logical)]
    some = {logical.row for logical in own} | {linear.row.name for linear in trained.adapters(spec)}
    ways: list[Way] = []
    hidden = leaves = normed = enters
    for branch in family.branches(spec):
        if branch.norm is not None:
            normed = hidden or branch.norm.name in some
        inner = normed or not some.isdisjoint(row.name for row in (branch.column, *branch.inner))
        leaves = leaves or inner or branch.row.name in some
        hidden = enters if spec.parallel_attention else leaves
        ways.append(Way(normed, inner))
    weights = frozenset(logical.row for logical in own if logical.leaf == "weight")
    return Flow(weights=weights, ways=tuple(ways), leaves=leaves)


def flows(spec: ModelSpec, trained: Trainable, layers: Iterable[int], *, enters: bool) -> list[Flow]:
    """Return the flow of each of several layers in a row."""
    found = []
    for layer in layers:
        found.append(flow(spec, trained, layer, enters=enters))
        enters = found[-1].leaves
    return found
