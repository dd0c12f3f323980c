"""Pipeline stages: layer <-> (stage, chunk, local layer).

As megatron-core places them: with virtual chunks, chunk c of stage s is the (c * pp + s)-th run of layers.
"""

from dataclasses import dataclass
from typing import NoReturn

from mconv.errors import LayoutError


@dataclass(frozen=True, slots=True)
class LayerPlacement:
    """The placement of a layer: pipeline stage, model chunk on that stage, layer number within the chunk."""

    stage: int
    chunk: int
    local: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Uneven:
    """Reasons for stages to hold different numbers of layers, as megatron-core counts them."""

    first: int | None = None
    """Layers of the first stage; the others share the rest evenly."""
    last: int | None = None
    embedding: bool = False
    """The embedding counts as a layer of the first stage."""
    loss: bool = False
    """The head counts as a layer of the last stage."""


EVEN = Uneven()


def stage_layers(num_layers: int, *, pp: int, vpp: int = 1, uneven: Uneven = EVEN) -> dict[tuple[int, int], range]:
    """Return the layers of each (stage, chunk). Raises LayoutError if they cannot be shared so."""
    counts = _counts(num_layers, pp=pp, vpp=vpp, uneven=uneven)
    found, start = {}, 0
    for chunk in range(vpp):
        for stage in range(pp):
            stop = start + counts[stage][chunk]
            found[stage, chunk] = range(start, stop)
            start = stop
    return found


def _counts(num_layers: int, *, pp: int, vpp: int, uneven: Uneven) -> list[list[int]]:
    """Return the number of layers of each chunk of each stage."""
    stages = _per_stage(num_layers + uneven.embedding + uneven.loss, pp=pp, vpp=vpp, uneven=uneven)
    if bad := [n for n in stages if n % vpp or n < 0]:
        raise LayoutError(f"a stage of {bad[0]} layers cannot be shared evenly by {vpp} virtual chunks")
    counts = [[n // vpp] * vpp for n in stages]
    counts[0][0] -= uneven.embedding
    counts[-1][-1] -= uneven.loss
    return counts


def _per_stage(num_layers: int, *, pp: int, vpp: int, uneven: Uneven) -> list[int]:
    named = [n for n in (uneven.first, uneven.last) if n is not None]
    if named and (uneven.embedding or uneven.loss):
        raise LayoutError("stages of a given size do not go with an embedding or a head that counts as a layer")
    if len(named) > pp or (pp == 1 and named):
        raise LayoutError(f"pp {pp} has no first and last stage of their own sizes")
    rest, between = num_layers - sum(named), pp - len(named)
    if not between:
        if rest:
            raise LayoutError(f"{sum(named)} layers on the first and last stage, but the model has {num_layers}")
        middle = 0
    elif rest < 0 or rest % (between * vpp):
        _refuse(num_layers, rest, between, pp=pp, vpp=vpp)
    else:
        middle = rest // between
    stages = [middle] * pp
    stages[0] = middle if uneven.first is None else uneven.first
    stages[-1] = stages[-1] if uneven.last is None else uneven.last
    return stages


def _refuse(num_layers: int, rest: int, between: int, *, pp: int, vpp: int) -> NoReturn:
    chunks = f" x {vpp} virtual chunks" if vpp > 1 else ""
    if rest != num_layers:
        raise LayoutError(
            f"{rest} of {num_layers} layers are left for {between} stages{chunks}, which cannot share them evenly"
        )
    fits = ", ".join(str(n) for n in range(1, num_layers + 1) if num_layers % (n * vpp) == 0)
    raise LayoutError(f"{num_layers} layers cannot be divided evenly among pp {pp}{chunks}; pp can be {fits or 'none'}")


def placements(num_layers: int, *, pp: int, vpp: int = 1, uneven: Uneven = EVEN) -> list[LayerPlacement]:
    """Return the placement of each layer, in layer order: the inverse of `stage_layers`."""
    by_layer = {
        layer: LayerPlacement(stage, chunk, local)
        for (stage, chunk), layers in stage_layers(num_layers, pp=pp, vpp=vpp, uneven=uneven).items()
        for local, layer in enumerate(layers)
    }
    return [by_layer[layer] for layer in range(num_layers)]
