"""Pipeline stages: layer <-> (stage, chunk, local layer).

As megatron-core places them: with virtual chunks, chunk c of stage s is the (c * pp + s)-th run of layers.
"""

from dataclasses import dataclass

from mconv.errors import LayoutError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer lies: pipeline stage, model chunk on that stage, layer number within the chunk."""

    stage: int
    chunk: int
    local: int


def stage_layers(num_layers: int, *, pp: int, vpp: int = 1) -> dict[tuple[int, int], range]:
    """The layers of each (stage, chunk). Raises LayoutError if the stages would be uneven."""
    parts = pp * vpp
    if num_layers % parts:
        fits = [n for n in range(1, num_layers + 1) if num_layers % (n * vpp) == 0]
        chunks = f" x {vpp} virtual chunks" if vpp > 1 else ""
        raise LayoutError(f"{num_layers} layers cannot be shared evenly by pp {pp}{chunks}; pp can be {fits}")
    n = num_layers // parts
    return {(k % pp, k // pp): range(k * n, (k + 1) * n) for k in range(parts)}


def places(num_layers: int, *, pp: int, vpp: int = 1) -> list[Place]:
    """The place of each layer, in layer order: the inverse of `stage_layers`."""
    by_layer = {
        layer: Place(stage, chunk, local)
        for (stage, chunk), layers in stage_layers(num_layers, pp=pp, vpp=vpp).items()
        for local, layer in enumerate(layers)
    }
    return [by_layer[layer] for layer in range(num_layers)]
