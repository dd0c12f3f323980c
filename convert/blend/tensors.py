"""The Hugging Face tensors of a merged model: what each is merged from, and the parameters that hold for it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mconv.convert.blend.document import Reference
from mconv.convert.blend.lineup import Bound, Lineup, Origin, bind
from mconv.convert.blend.recipe import Recipe
from mconv.convert.sources.unfused import Unfused, unfused
from mconv.convert.spelling.table import Family, Logical
from mconv.errors import ConfigError
from mconv.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Merged:
    """A Hugging Face tensor of the result: what it is merged from, and the parameters that hold for it."""

    member: Unfused
    bound: Bound
    inputs: tuple[tuple[Reference, Logical], ...]
    """The logical tensor of each model that holds what is merged."""


def tensors_of(recipe: Recipe, lineup: Lineup, family: Family, spec: ModelSpec) -> Mapping[Logical, tuple[Merged, ...]]:
    """Return the Hugging Face tensors of each logical tensor. Raises ConfigError where a parameter is missing."""
    deepest = max(
        [spec.num_layers, *(1 + layer for origin in lineup.layers for layer in origin.layers if layer is not None)]
    )
    named = _grouped(family, replace(spec, num_layers=deepest))
    return {
        logical: tuple(
            _merged(recipe, _origin(lineup, family, logical), member, at, named) for at, member in enumerate(group)
        )
        for logical, group in _grouped(family, spec).items()
    }


def _grouped(family: Family, spec: ModelSpec) -> dict[Logical, list[Unfused]]:
    found: dict[Logical, list[Unfused]] = {}
    for member in unfused(family, spec).values():
        found.setdefault(member.logical, []).append(member)
    return found


def _origin(lineup: Lineup, family: Family, logical: Logical) -> Origin:
    if logical.layer is not None:
        return lineup.layers[logical.layer]
    return lineup.before if family.row(logical.row).looked_up else lineup.after


def _merged(recipe: Recipe, origin: Origin, member: Unfused, at: int, named: Mapping[Logical, list[Unfused]]) -> Merged:
    logicals = [replace(member.logical, layer=layer) for layer in origin.layers]
    bound = bind(recipe, origin, member.key, [named[logical][at].key for logical in logicals])
    _check_weights(recipe, bound, member.key)
    models = [one.model for one in origin.part.inputs]
    return Merged(member, bound, tuple(zip(models, logicals, strict=True)))


NORMALIZED = {"linear": "normalize", "multislerp": "normalize_weights"}
"""Methods that divide by the sum of the weights -> the parameter that says whether they do."""


def _check_weights(recipe: Recipe, bound: Bound, name: str) -> None:
    """Raise ConfigError where weights are divided by their sum and that is 0, or where all of a sum's are 0."""
    method = recipe.method.name
    if method not in NORMALIZED:
        return
    weights = [one["weight"] for at, one in enumerate(bound.inputs) if at != bound.base]
    divided = bound.shared[NORMALIZED[method]]
    if not any(weights) or (divided and abs(sum(weights)) < 1e-8):
        told = ", ".join(f"{weight:g}" for weight in weights)
        raise ConfigError(f"{name}: the weights {told} sum to nothing; change them, or leave them unnormalized")
