"""Spelling: which stored tensor holds which piece of which logical tensor, in each format."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from operator import add

from mconv.convert.dialects import Dialect, mcore
from mconv.convert.formats import mp_rank, torch_dist
from mconv.convert.formats.tensors import Located
from mconv.convert.spelling.spelled import stacked
from mconv.convert.spelling.table import Family, Logical, Stored
from mconv.errors import FormatError, LayoutError, refuse
from mconv.shard.axes import Axes
from mconv.shard.cut import Piece, region
from mconv.shard.layout import Layout
from mconv.shard.pattern import piece
from mconv.shard.stages import LayerPlacement, placements
from mconv.spec import ModelSpec


# ---- Hugging Face ----------------------------------------------------------------------------------------------------
def hf(family: Family, spec: ModelSpec, tensors: Collection[str]) -> list[Stored]:
    """Return the tensors of a Hugging Face folder. A tied head that is stored all the same is a copy of the embedding."""
    stored = family.stored(spec)
    if spec.tied_embeddings and family.head_key in tensors:
        embed = next(s for s in stored if s.logical == family.embedding)
        stored.append(dataclasses.replace(embed, key=family.head_key))
    return stored


# ---- mp_rank ---------------------------------------------------------------------------------------------------------
def rank_piece(
    dialect: Dialect, family: Family, spec: ModelSpec, layout: Layout, logical: Logical, tp_rank: int
) -> Piece:
    """Return the piece of a logical tensor that one tensor-parallel rank stores."""
    row, axes = family.row(logical.row), family.axes(logical)
    padded = layout.padded_vocab if row.cut == "v" else None
    return piece(axes, spec.sizes, dialect.pattern(row).only(axes.names), cut=row.cut, rank=tp_rank, of=layout.tp,
                 padded=padded)  # fmt: skip


def rank_tensors(
    dialect: Dialect, family: Family, spec: ModelSpec, layout: Layout
) -> Iterator[tuple[LayerPlacement, tuple[str, ...], Logical]]:
    """Yield everything that a model's ranks hold: (stage, chunk, local layer), possible names there, logical tensor."""
    where = placements(spec.num_layers, pp=layout.pp, vpp=layout.vpp, uneven=layout.uneven)
    first, last = LayerPlacement(0, 0, 0), LayerPlacement(layout.pp - 1, layout.vpp - 1, 0)
    names, logicals = dialect.names(spec), family.logicals(dialect.stored_spec(spec))
    if unknown := sorted({logical.row for logical in logicals} - names.keys()):
        raise LayoutError(f"the dialect {dialect.name} has no name for {', '.join(unknown)}, which this model has")
    for logical in logicals:
        outside = first if family.row(logical.row).looked_up else last
        place = outside if logical.layer is None else where[logical.layer]
        yield place, tuple(name.format(l=place.local, leaf=logical.leaf) for name in names[logical.row]), logical
        if logical == family.embedding and spec.tied_embeddings and layout.pp > 1:  # the last stage holds a copy
            yield last, tuple(name.format(leaf=logical.leaf) for name in names[dialect.tied_name]), logical


def mp_rank_targets(dialect: Dialect, family: Family, spec: ModelSpec, layout: Layout) -> list[Stored]:
    """Return every tensor of an `mp_rank` checkpoint, rank by rank."""
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
    """Return every tensor of an `mp_rank` checkpoint under whichever of its dialect's names `tensors` has."""
    found = []
    for place, names, logical in rank_tensors(dialect, family, spec, layout):
        for rank in range(layout.tp):
            keys = [mp_rank.key(rank, place.stage, place.chunk, n, pp=layout.pp, vpp=layout.vpp) for n in names]
            key = next((k for k in keys if k in tensors), keys[0])
            found.append(Stored(key, logical, rank_piece(dialect, family, spec, layout, logical, rank)))
    return found


# ---- torch_dist ------------------------------------------------------------------------------------------------------
def global_name(logical: Logical) -> str:
    """Return the key that we write: the fused-norm name, which megatron-core's two specs agree on, layers stacked."""
    return stacked(mcore.NAMES[logical.row][-1]).format(leaf=logical.leaf)


def global_axes(family: Family, logical: Logical) -> Axes:
    """Return the axes of what is stored under that key: `"l (g s h) d"`."""
    axes = family.axes(logical)
    return axes if logical.layer is None else Axes((("l",), *axes.groups))


def global_sizes(spec: ModelSpec, layout: Layout) -> dict[str, int]:
    """Return the size of every axis as it is stored: with the layers, and the vocabulary padded."""
    return {**spec.sizes, "l": spec.num_layers, "v": layout.padded_vocab}


def global_shapes(family: Family, spec: ModelSpec, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Return the whole shape of every global tensor."""
    logicals, sizes = family.logicals(mcore.bias_spec(spec)), global_sizes(spec, layout)
    return {global_name(x): global_axes(family, x).shape(sizes) for x in logicals}


def rectangles(
    axes: Axes, sizes: Mapping[str, int], shares: Mapping[str, tuple[int, int]]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return (offsets, shape) of the contiguous rectangles of a stored tensor that a share of it consists of.

    `shares`: of each axis that is cut, which part of how many. One rectangle, but where the cut axis lies within a fused
    dimension: one for each of what is outside it (gate, up).
    """
    # (p f) d, p=2 f=8 d=4, f cut for rank 1 of 4 -> rows 2:4 (gate) and 10:12 (up): [((2, 0), (2, 4)), ((10, 0), (2, 4))]
    spans = [list(_spans(group, sizes, shares)) for group in axes.groups]
    return [(tuple(o for o, _ in combo), tuple(w for _, w in combo)) for combo in product(*spans)]


def _spans(
    group: tuple[str, ...], sizes: Mapping[str, int], shares: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of each run of a dimension: (p f) of 2 x 8 rows, f cut for rank 1 of 4 -> 2:4, 10:12."""
    before = next((i for i, axis in enumerate(group) if axis in shares), 0)
    part, of = shares.get(group[before], (0, 1))
    run = prod(sizes[axis] for axis in group[before:])
    for k in range(prod(sizes[axis] for axis in group[:before])):
        yield k * run + part * (run // of), run // of


def torch_dist_targets(family: Family, spec: ModelSpec, layout: Layout) -> list[Stored]:
    """Return every chunk that the tensor-parallel ranks write to a `torch_dist` checkpoint, replicas once."""
    found, sizes = [], global_sizes(spec, layout)
    for logical in family.logicals(mcore.bias_spec(spec)):
        row, axes, whole = family.row(logical.row), family.axes(logical), global_axes(family, logical)
        stack = {} if logical.layer is None else {"l": (logical.layer, spec.num_layers)}
        for rank in range(layout.tp if row.cut in axes.names else 1):
            for offsets, shape in rectangles(whole, sizes, {**stack, row.cut: (rank, layout.tp)}):
                piece = region(axes, spec.sizes, offsets[len(stack) :], shape[len(stack) :])
                key = torch_dist.chunk_key(global_name(logical), offsets)
                found.append(Stored(key, logical, Piece(shape, piece.blocks)))
    return found


@dataclass(frozen=True, slots=True)
class Expected:
    """A global tensor that a distributed checkpoint may hold."""

    logical: Logical
    """The tensor of the first layer where layers are stacked."""
    shape: tuple[int, ...]
    start: tuple[int, ...]
    """The offsets at which it begins in the logical tensor as stored."""
    stack: bool = False
    """True where the first dimension counts layers."""


def expected_globals(family: Family, spec: ModelSpec, layout: Layout) -> dict[str, Expected]:
    """Return what each key holds: all layers stacked, one layer, or its gate or up alone (singleton local shards)."""
    found: dict[str, Expected] = {}
    sizes = global_sizes(spec, layout)
    for x in family.logicals(mcore.bias_spec(spec)):
        shape, zero = family.axes(x).shape(sizes), (0,) * len(family.axes(x).groups)
        for name in mcore.NAMES[x.row]:
            key = name.format(l=x.layer, leaf=x.leaf)
            found[key] = Expected(x, shape, zero)
            if x.layer is None:
                continue
            found.setdefault(stacked(name).format(leaf=x.leaf), Expected(x, (spec.num_layers, *shape), zero, stack=True))
            if "p" in family.axes(x).names:
                half = (shape[0] // 2, *shape[1:])
                found |= {f"{key}_{end}": Expected(x, half, (i * half[0], *zero[1:])) for i, end in enumerate("wv")}
    return found


def torch_dist_sources(
    family: Family, spec: ModelSpec, layout: Layout, tensors: dict[str, torch_dist.Global]
) -> tuple[list[Stored], dict[str, Located]]:
    """Return every chunk that was found, and the place of its bytes: layers stacked or not, chunked in any way."""
    problems, stored, located = [], [], {}
    expected = expected_globals(family, spec, layout)
    for fqn, tensor in tensors.items():
        whole = expected.get(fqn)
        if whole is None:
            problems.append(f"{fqn} {tensor.shape}: no row of the {family.name} table claims it")
        elif tensor.shape != whole.shape:
            problems.append(f"{fqn} has shape {tensor.shape}; the architecture says {whole.shape}")
        else:
            for chunk in tensor.chunks:
                for offsets, logical, where in _layers(chunk, whole, chunk.locate(fqn, tensor.dtype)):
                    key = torch_dist.chunk_key(fqn, offsets)
                    begin = tuple(map(add, whole.start, offsets[whole.stack :]))
                    piece = region(family.axes(logical), spec.sizes, begin, where.shape)
                    stored.append(Stored(key, logical, piece))
                    located[key] = where
    refuse(problems, doing="reading the distributed checkpoint", kind=FormatError)
    return stored, located


def _layers(
    chunk: torch_dist.Chunk, whole: Expected, where: Located
) -> Iterator[tuple[tuple[int, ...], Logical, Located]]:
    """Yield a chunk as its layers: offsets, logical tensor, bytes."""
    if not whole.stack:
        yield chunk.offsets, whole.logical, where
        return
    first, *rest = chunk.offsets
    for n in range(chunk.shape[0]):
        offset = where.offset + n * (where.nbytes // chunk.shape[0])
        at = dataclasses.replace(where, offset=offset, shape=chunk.shape[1:])
        yield (first + n, *rest), dataclasses.replace(whole.logical, layer=first + n), at
