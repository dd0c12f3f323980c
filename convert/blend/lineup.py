"""What a recipe says of one tensor of the merged model: where it comes from, and which parameters hold for it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mconv.convert.blend.document import Reference
from mconv.convert.blend.recipe import Input, Recipe, Slice
from mconv.convert.blend.settings import Settings, evaluate
from mconv.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Origin:
    """The slice that a layer, or what is outside the layers, is merged by."""

    part: Slice
    t: float
    """Place in the slice from its first layer (0) to its last (1), which lists of values run over."""
    layers: tuple[int | None, ...]
    """Layer of each input; None: outside the layers."""


@dataclass(frozen=True, slots=True)
class Lineup:
    """The origins of a merged model's tensors, from its embeddings to its head."""

    before: Origin
    layers: tuple[Origin, ...]
    after: Origin


@dataclass(frozen=True, slots=True)
class Bound:
    """The parameters that hold for a tensor, as `slabs.Merge` takes them."""

    shared: Mapping[str, Any]
    inputs: tuple[Mapping[str, Any], ...]
    base: int | None
    """Position of the base among the inputs, where it has a part of its own."""


def lineup(recipe: Recipe, depths: Mapping[Reference, int]) -> Lineup:
    """Return where each layer of the merged model comes from. `depths`: how many layers the models have."""
    first, last = recipe.slices[0], recipe.slices[-1]
    layers = tuple(origin for part in recipe.slices for origin in _layers(part, depths))
    return Lineup(_outside(first), layers, _outside(last))


def _outside(part: Slice) -> Origin:
    return Origin(part, 0.0, (None,) * len(part.inputs))


def _layers(part: Slice, depths: Mapping[Reference, int]) -> Iterator[Origin]:
    """Yield the origins of a slice's layers. Raises ConfigError if its inputs have different numbers of layers."""
    ranges = [_range(one, depths[one.model]) for one in part.inputs]
    if len({*map(len, ranges)}) > 1:
        counts = ", ".join(f"{one.model} {len(of)}" for one, of in zip(part.inputs, ranges, strict=True))
        raise ConfigError(f"all inputs of a slice must have as many layers: {counts}; give each a layer_range")
    count = len(ranges[0])
    for at, layers in enumerate(zip(*ranges, strict=True)):
        yield Origin(part, at / (count - 1) if count > 1 else 1.0, layers)


def _range(one: Input, depth: int) -> range:
    first, last = one.layers or (0, depth)
    if last > depth:
        raise ConfigError(f"layer_range [{first}, {last}] of {one.model} ends after its {depth} layers")
    return range(first, last)


def bind(recipe: Recipe, origin: Origin, name: str, inputs: Sequence[str]) -> Bound:
    """Return the parameters that hold for a tensor: filters look at its Hugging Face name.

    `inputs`: what it is called in each input, whose layers may be others; filters of a model's parameters look at that.
    """
    method, part, base = recipe.method, origin.part, recipe.base_of(origin.part)
    places: list[Settings] = [part.settings, recipe.settings]
    shared = {one.name: evaluate(one, places, name, origin.t, "") for one in method.shared}
    models = [one.model for one in part.inputs]
    apart = models.index(base) if method.base != "unused" and base is not None else None

    def each(at: int) -> Mapping[str, Any]:
        own, whose = [part.inputs[at].settings, *places], f" for {models[at]}"
        return {one.name: evaluate(one, own, inputs[at], origin.t, whose) for one in method.each}

    return Bound(shared, tuple({} if at == apart else each(at) for at in range(len(models))), apart)
