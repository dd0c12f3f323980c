"""Spelling: which stored tensor holds which piece of which logical tensor, in each format."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from itertools import product

from mconv.convert.dialects import Dialect, mcore
from mconv.convert.formats import mp_rank, torch_dist
from mconv.convert.formats.tensors import Located
from mconv.convert.table import Family, Logical, Stored
from mconv.errors import FormatError, LayoutError, refuse
from mconv.shard.axes import Axes
from mconv.shard.cut import Piece, region
from mconv.shard.layout import Layout
from mconv.shard.pattern import piece
from mconv.shard.stages import LayerPlacement, placements
from mconv.spec import ModelSpec

FIRST = ("embed", "positions")
"""Rows outside the layers that the first pipeline stage holds; the last holds the others."""


# ---- Hugging Face ----------------------------------------------------------------------------------------------------
def hf(family: Family, spec: ModelSpec, tensors: Collection[str]) -> list[Stored]:
    """The tensors of a Hugging Face folder. A tied head that is stored all the same is a copy of the embedding."""
    stored = family.stored(spec)
    if spec.tied_embeddings and family.head_key in tensors:
        embed = next(s for s in stored if s.logical.row == "embed")
        stored.append(dataclasses.replace(embed, key=family.head_key))
    return stored


# ---- mp_rank ---------------------------------------------------------------------------------------------------------
def rank_piece(
    dialect: Dialect, family: Family, spec: ModelSpec, layout: Layout, logical: Logical, tp_rank: int
) -> Piece:
    """What one tensor-parallel rank stores of a logical tensor."""
    row, axes = family.row(logical.row), family.axes(logical)
    padded = layout.padded_vocab if row.cut == "v" else None
    return piece(axes, spec.sizes, dialect.pattern(row).only(axes.names), cut=row.cut, rank=tp_rank, of=layout.tp,
                 padded=padded)  # fmt: skip


def rank_tensors(
    dialect: Dialect, family: Family, spec: ModelSpec, layout: Layout
) -> Iterator[tuple[LayerPlacement, tuple[str, ...], Logical]]:
    """(stage, chunk, local layer), possible names there, logical tensor: everything that a model's ranks hold."""
    where = placements(spec.num_layers, pp=layout.pp, vpp=layout.vpp, uneven=layout.uneven)
    first, last = LayerPlacement(0, 0, 0), LayerPlacement(layout.pp - 1, layout.vpp - 1, 0)
    names, logicals = dialect.names(spec), family.logicals(dialect.stored_spec(spec))
    if unknown := sorted({logical.row for logical in logicals} - names.keys()):
        raise LayoutError(f"the dialect {dialect.name} has no name for {', '.join(unknown)}, which this model has")
    for logical in logicals:
        place = where[logical.layer] if logical.layer is not None else (first if logical.row in FIRST else last)
        yield place, tuple(name.format(i=place.local, leaf=logical.leaf) for name in names[logical.row]), logical
        if logical.row == "embed" and spec.tied_embeddings and layout.pp > 1:  # the last stage holds a copy
            yield last, tuple(name.format(leaf=logical.leaf) for name in names[dialect.tied_name]), logical


def mp_rank_targets(dialect: Dialect, family: Family, spec: ModelSpec, layout: Layout) -> list[Stored]:
    """Every tensor of an `mp_rank` checkpoint, rank by rank."""
    found: dict[tuple[int, int], list[Stored]] = {(stage, rank): [] for rank, stage in layout.ranks}
    for place, names, logical in rank_tensors(dialect, family, spec, layout):
        for rank in range(layout.tp):
            key = mp_rank.key(rank, place.stage, place.chunk, names[0], pp=layout.pp, vpp=layout.vpp)
            piece = rank_piece(dialect, family, spec, layout, logical, rank)
            found[place.stage, rank].append(Stored(key, logical, piece))
    return [stored for key in sorted(found) for stored in found[key]]


def mp_rank_sources(
    dialect: Dialect, family: Family, spec: ModelSpec, layout: Layout, tensors: Mapping[str, Located]
) -> list[Stored]:
    """The same tensors as they are named in a checkpoint that was found: by whichever of the names it uses."""
    found = []
    for place, names, logical in rank_tensors(dialect, family, spec, layout):
        for rank in range(layout.tp):
            keys = [mp_rank.key(rank, place.stage, place.chunk, n, pp=layout.pp, vpp=layout.vpp) for n in names]
            key = next((k for k in keys if k in tensors), keys[0])
            found.append(Stored(key, logical, rank_piece(dialect, family, spec, layout, logical, rank)))
    return found


# ---- torch_dist ------------------------------------------------------------------------------------------------------
def global_names(logical: Logical) -> list[str]:
    """The keys that a global tensor may have, without the layer number because layers are stacked."""
    return [name.format(i="@", leaf=logical.leaf).replace("layers.@.", "layers.") for name in mcore.NAMES[logical.row]]


def global_name(logical: Logical) -> str:
    """The key that we write: the fused-norm name, which megatron-core's two specs agree on."""
    return global_names(logical)[-1]


def global_shape(family: Family, spec: ModelSpec, layout: Layout, logical: Logical) -> tuple[int, ...]:
    shape = family.axes(logical).shape({**spec.sizes, "v": layout.padded_vocab})
    return shape if logical.layer is None else (spec.num_layers, *shape)


def global_shapes(family: Family, spec: ModelSpec, layout: Layout) -> dict[str, tuple[int, ...]]:
    """The whole shape of every global tensor."""
    logicals = family.logicals(mcore.bias_spec(spec))
    return {global_name(x): global_shape(family, spec, layout, x) for x in logicals}


def rectangles(
    axes: Axes, sizes: dict[str, int], cut: str, *, rank: int, of: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(offsets, shape) of the contiguous rectangles of a stored tensor that a rank's share consists of.

    One, but where the cut axis lies within a fused dimension: one for each of what is outside it (gate, up).
    """
    per_dimension = []
    for group in axes.groups:
        before = group.index(cut) if cut in group else 0
        n = axes.shape(sizes)[axes.groups.index(group)]
        outer = 1
        for name in group[:before]:
            outer *= sizes[name]
        ranks = of if cut in group else 1
        run, width = n // outer, n // outer // ranks
        per_dimension.append([(k * run + (rank * width if cut in group else 0), width) for k in range(outer)])
    return [(tuple(o for o, _ in combo), tuple(w for _, w in combo)) for combo in product(*per_dimension)]


def torch_dist_targets(family: Family, spec: ModelSpec, layout: Layout) -> list[Stored]:
    """Every chunk of a `torch_dist` checkpoint: what each tensor-parallel rank would have written, replicas once."""
    found = []
    padded = {**spec.sizes, "v": layout.padded_vocab}
    for logical in family.logicals(mcore.bias_spec(spec)):
        row, axes = family.row(logical.row), family.axes(logical)
        cut = row.cut if row.cut in axes.names else ""
        stack = () if logical.layer is None else (logical.layer,)
        for rank in range(layout.tp if cut else 1):
            for offsets, shape in rectangles(axes, padded, cut, rank=rank, of=layout.tp if cut else 1):
                key = torch_dist.chunk_key(global_name(logical), (*stack, *offsets))
                piece = region(axes, spec.sizes, offsets, shape)
                found.append(Stored(key, logical, Piece((*(1 for _ in stack), *shape), piece.blocks)))
    return found


def torch_dist_sources(
    family: Family, spec: ModelSpec, layout: Layout, tensors: dict[str, torch_dist.Global]
) -> tuple[list[Stored], dict[str, Located]]:
    """Every chunk that was found, and where its bytes lie. Stacked layers or one key a layer, chunked in any way."""
    problems, stored, located = [], [], {}
    by_name = {name: x for x in family.logicals(mcore.bias_spec(spec)) for name in global_names(x)}
    for fqn, tensor in tensors.items():
        name, layer = torch_dist.layer_of(fqn)
        name, half = torch_dist.half_of(name) if layer is not None else (name, None)
        logical = by_name.get(name)
        if logical is None:
            problems.append(f"{fqn} {tensor.shape}: no row of the {family.name} table claims it")
            continue
        want = global_shape(family, spec, layout, logical)
        want = want[1:] if layer is not None else want
        if half is not None:
            want = (want[0] // 2, *want[1:])
        if tensor.shape != want:
            problems.append(f"{fqn} has shape {tensor.shape}; the architecture says {want}")
            continue
        for chunk in tensor.chunks:
            for key, place, piece_of in _layers(fqn, tensor, chunk, logical, layer):
                offsets, shape = piece_of
                if half is not None:
                    offsets = (offsets[0] + half * want[0], *offsets[1:])
                piece = region(family.axes(logical), spec.sizes, offsets, shape)
                stored.append(Stored(key, place[0], Piece(place[1].shape, piece.blocks)))
                located[key] = place[1]
    refuse(problems, doing="reading the distributed checkpoint", kind=FormatError)
    return stored, located


def _layers(
    fqn: str, tensor: torch_dist.Global, chunk: torch_dist.Chunk, logical: Logical, layer: int | None
) -> Iterator[tuple[str, tuple[Logical, Located], tuple[tuple[int, ...], tuple[int, ...]]]]:
    """One chunk as its layers: key, (logical tensor, bytes), (offsets, shape) within the layer's tensor."""
    where = chunk.locate(fqn, tensor.dtype)
    if logical.layer is None or layer is not None:
        named = dataclasses.replace(logical, layer=layer)
        yield torch_dist.chunk_key(fqn, chunk.offsets), (named, where), (chunk.offsets, chunk.shape)
        return
    shape = chunk.shape[1:]
    for n in range(chunk.shape[0]):
        nbytes = where.nbytes // chunk.shape[0]
        at = dataclasses.replace(where, offset=where.offset + n * nbytes, shape=shape)
        index = chunk.offsets[0] + n
        key = torch_dist.chunk_key(fqn, (index, *chunk.offsets[1:]))
        yield key, (dataclasses.replace(logical, layer=index), at), (chunk.offsets[1:], shape)
