"""The weights that a run trains, and where gradients flow: a frozen linear keeps no input and has no gradient."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from mconv.convert.dialects import mcore
from mconv.convert.families import FAMILIES
from mconv.convert.lora import Linear, Settings, linears
from mconv.convert.table import Logical
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
        return self.has(Logical("embed")) or (spec.position == "learned" and self.has(Logical("positions")))

    def adapters(self, spec: ModelSpec, row: str | None = None) -> list[Linear]:
        """Return the linears of a layer, or of one of its rows, that have an adapter."""
        if self.adapter is None:
            return []
        known = linears(FAMILIES[spec.family], spec)
        return [known[name] for name in self.adapter.targets if row in (None, known[name].row.name)]


ALL = Trainable()


def name_of(logical: Logical) -> str:
    """Return megatron-core's name of a tensor, its layer counted through the whole model."""
    return mcore.NAMES[logical.row][0].format(i=logical.layer, leaf=logical.leaf)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The gradients of one layer: which of the tensors on its way have one, and which linears' weights do."""

    weights: frozenset[str]
    """Rows whose weight is trained."""
    enters: bool
    normed: bool
    """The normed input, of which query, key and value are made."""
    attention: bool
    """Query, key and value, up to the output of attention."""
    between: bool
    """The input of the norm before the MLP."""
    normed_again: bool
    mlp: bool
    """The tensors between the MLP's two linears."""
    leaves: bool


@lru_cache(maxsize=4096)  # a plan asks for the same layers at many layouts
def flow(spec: ModelSpec, trained: Trainable, layer: int, *, enters: bool) -> Flow:
    """Return where gradients flow in a layer; `enters`: whether its input asks for one."""
    own = [logical for logical in FAMILIES[spec.family].logicals(spec) if logical.layer == layer and trained.has(logical)]
    some = {logical.row for logical in own} | {linear.row.name for linear in trained.adapters(spec)}
    normed = enters or "layer.attn_norm" in some
    attention = normed or "layer.qkv" in some
    projected = attention or "layer.attn_out" in some
    between = enters if spec.parallel_attention else enters or projected
    again = normed if spec.shared_norm else between or "layer.mlp_norm" in some
    mlp = again or "layer.mlp_in" in some
    return Flow(
        weights=frozenset(logical.row for logical in own if logical.leaf == "weight"), enters=enters, normed=normed,
        attention=attention, between=between, normed_again=again, mlp=mlp,
        leaves=enters or projected or mlp or "layer.mlp_out" in some,
    )  # fmt: skip


def flows(spec: ModelSpec, trained: Trainable, layers: Iterable[int], *, enters: bool) -> list[Flow]:
    """Return the flow of each of several layers in a row."""
    found = []
    for layer in layers:
        found.append(flow(spec, trained, layer, enters=enters))
        enters = found[-1].leaves
    return found
