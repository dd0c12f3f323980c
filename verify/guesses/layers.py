"""Faults of whole layers: repeated, exchanged, missing. b's layers are sought among a's, by a sample and then whole."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from mconv.convert.formats.mapped import bytes_of
from mconv.convert.sources.source import Source, dims_of, dtype_of
from mconv.convert.table import Logical
from mconv.verify.guesses.pair import entire, narrower, same

Origins = Mapping[int, int]
"""b's layer -> the layer of a that it is, where it is not its own."""
TRIED = 4
"""Layers with the same sample that are compared whole, the nearest first."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A fault of whole layers, or (with `tensor`) of one tensor of them."""

    name: str
    what: str
    origins: Origins
    tensor: tuple[str, str] | None = None
    """Row and leaf."""
    gone: tuple[int, ...] = ()
    """Layers beyond those of the shorter of the two models."""


def moved(a: Source, b: Source, changed: Iterable[Logical]) -> list[Moved]:
    """What explains the `changed` tensors of b by layers of a. Tensors that b alone has are among them."""
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
    """The first run of a tensor along its last axis."""
    *outer, last = dims_of(source, logical)
    return bytes(bytes_of(source.pull(logical, (*((0, 1) for _ in outer), (0, last))).to(dtype)))


def _origins(a: Source, b: Source, logical: Logical, samples: dict[tuple[str, str], dict[int, bytes]]) -> set[int]:
    """The layers of a, but its own, whose tensor this one is."""
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
    """Whether what does not differ in a layer is the same in layer `j` too, so that the whole of it is layer `j`."""
    others = [x for x in a.tensors() if x.layer == layer and x not in found]
    return all(same(entire(a, x), entire(a, replace(x, layer=j))) for x in others if replace(x, layer=j) in a.tensors())


def _classified(whole: Origins, changed: Collection[int], *, layers: tuple[int, int]) -> list[Moved]:
    """The words for where b's layers come from."""
    held, there = layers
    order = [whole.get(i, -1 if i in changed else i) for i in range(there)]
    gone = tuple(range(min(layers), max(layers)))
    lost = [j for j in range(held) if j not in order]
    if not whole:
        return [Moved("layer-missing", f"{said(lost)} missing", {}, None, gone)] if lost and gone else []
    shifts, at = {j - i for i, j in whole.items()}, sorted(whole)
    if sorted(whole.values()) == at:
        if len(at) == 2:
            return [Moved("layers-exchanged", f"layers {at[0]} and {at[1]} are exchanged", whole)]
        return [Moved("layers-reordered", f"layers {at} are a's {[whole[i] for i in at]}", whole)]
    if len(shifts) == 1 and at == list(range(at[0], at[-1] + 1)) and (len(at) > 1 or gone):
        by = shifts.pop()
        if by > 0:
            return [Moved("layer-missing", f"{said(lost)} missing, and those after come too early", whole, None, gone)]
        told = f"layer {min(whole.values())} comes twice, and those after come too late"
        return [Moved("layer-repeated", told, whole, None, gone)]
    return [Moved("layer-repeated", f"layer {i} is layer {whole[i]} again", {i: whole[i]}) for i in at]


def said(layers: list[int]) -> str:
    """`layer 3 is`, `layers 3 and 4 are`."""
    if len(layers) == 1:
        return f"layer {layers[0]} is"
    return f"layers {', '.join(map(str, layers[:-1]))} and {layers[-1]} are"
