"""Faults of whole layers: repeated, exchanged, missing. b's layers are looked for in a, by a sample and then whole."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from mconv.convert.formats.mapped import bytes_of
from mconv.convert.sources.source import Source, dims_of, dtype_of
from mconv.convert.spelling.table import Logical
from mconv.verify.diagnosis.pair import entire, narrower, same

Origins = Mapping[int, int]
"""Layer of b -> the layer of a whose values it holds, if that is another one."""
TRIED = 4
"""Number of layers with the same sample that are compared whole, the nearest first."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A fault of whole layers or, with `tensor`, of one tensor of them."""

    name: str
    what: str
    origins: Origins
    tensor: tuple[str, str] | None = None
    """Row and leaf."""
    gone: tuple[int, ...] = ()
    """Layers that only the deeper of the two models has."""


def moved(a: Source, b: Source, changed: Iterable[Logical]) -> list[Moved]:
    """Return the faults that explain the `changed` tensors of b, and tensors that only b has, by layers of a."""
    origins: dict[int, dict[Logical, set[int]]] = {}
    samples: dict[tuple[str, str], dict[int, bytes]] = {}
    for logical in changed:
        if logical.layer is not None and logical in b.tensors():
            origins.setdefault(logical.layer, {})[logical] = _origins(a, b, logical, samples)
    whole: dict[int, int] = {}
    out = []
    for layer, found in origins.items():
        shared = [j for j in set.intersection(*found.values()) if _rest_fits(a, layer, j, found)]
        if shared:
            whole[layer] = min(shared, key=lambda j, i=layer: (abs(j - i), j))  # type: ignore[misc]
            continue
        for x in (x for x, sources in found.items() if sources):
            j, named = min(found[x]), f"{x.row.removeprefix('layer.')}.{x.leaf}"
            out.append(Moved("tensor-of-another-layer", f"{named} is that of layer {j}", {layer: j}, (x.row, x.leaf)))
    return _classified(whole, origins, layers=(a.spec.num_layers, b.spec.num_layers)) + out


def sample(source: Source, logical: Logical, dtype: torch.dtype) -> bytes:
    """Return the bytes of a tensor's first run along its last axis."""
    *outer, last = dims_of(source, logical)
    return bytes(bytes_of(source.pull(logical, (*((0, 1) for _ in outer), (0, last))).to(dtype)))


def _origins(a: Source, b: Source, logical: Logical, samples: dict[tuple[str, str], dict[int, bytes]]) -> set[int]:
    """Return the other layers of a whose tensor b holds here."""
    peers = {j: replace(logical, layer=j) for j in range(a.spec.num_layers)}
    peers = {j: peer for j, peer in peers.items() if peer in a.tensors() and dims_of(a, peer) == dims_of(b, logical)}
    if not peers:
        return set()
    dtype = narrower(dtype_of(a, next(iter(peers.values()))), dtype_of(b, logical))
    held = samples.setdefault((logical.row, logical.leaf), {})
    for j, peer in peers.items():
        if j not in held:
            held[j] = sample(a, peer, dtype)
    wanted, own = sample(b, logical, dtype), logical.layer or 0
    near = sorted((j for j in peers if held[j] == wanted and j != own), key=lambda j: abs(j - own))[:TRIED]
    tensor = entire(b, logical) if near else None
    return {j for j in near if tensor is not None and same(entire(a, peers[j]), tensor)}


def _rest_fits(a: Source, layer: int, j: int, found: Collection[Logical]) -> bool:
    """Return whether the unchanged tensors of a layer also equal those of layer `j`, so that all of it is layer `j`."""
    others = [x for x in a.tensors() if x.layer == layer and x not in found]
    return all(same(entire(a, x), entire(a, replace(x, layer=j))) for x in others if replace(x, layer=j) in a.tensors())


def _classified(whole: Origins, changed: Collection[int], *, layers: tuple[int, int]) -> list[Moved]:
    """Return the faults, given the layer of a that each changed layer of b holds."""
    held, there = layers
    order = [whole.get(i, -1 if i in changed else i) for i in range(there)]
    gone = tuple(range(min(layers), max(layers)))
    lost = [j for j in range(held) if j not in order]
    if not whole:
        return [Moved("layer-missing", f"{layers_are(lost)} missing", {}, None, gone)] if lost and gone else []
    shifts, at = {j - i for i, j in whole.items()}, sorted(whole)
    if sorted(whole.values()) == at:
        if len(at) == 2:
            return [Moved("layers-exchanged", f"layers {at[0]} and {at[1]} are exchanged", whole)]
        return [Moved("layers-reordered", f"layers {at} are a's {[whole[i] for i in at]}", whole)]
    if len(shifts) == 1 and at == list(range(at[0], at[-1] + 1)) and (len(at) > 1 or gone):
        by = shifts.pop()
        if by > 0:
            return [
                Moved("layer-missing", f"{layers_are(lost)} missing, and those after come too early", whole, None, gone)
            ]
        text = f"layer {min(whole.values())} comes twice, and those after come too late"
        return [Moved("layer-repeated", text, whole, None, gone)]
    return [Moved("layer-repeated", f"layer {i} is layer {whole[i]} again", {i: whole[i]}) for i in at]


def layers_are(layers: list[int]) -> str:
    """Return `layer 3 is`, `layers 3 and 4 are`."""
    if len(layers) == 1:
        return f"layer {layers[0]} is"
    return f"layers {', '.join(map(str, layers[:-1]))} and {layers[-1]} are"
