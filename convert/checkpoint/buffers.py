"""An optimizer's state in flat buffers: which run of which buffer is which parameter of the model.

megatron-core's distributed optimizer lays a rank's parameters end to end, from the last one made to the first, in buckets
that its replicas share. Nothing in them is named, so whether it comes out even is looked at everywhere.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

from mconv.convert.checkpoint.model import Checkpoint
from mconv.convert.dialects import DIALECTS, spell
from mconv.convert.formats import archive, mp_rank, torch_dist
from mconv.convert.formats.tensors import Joined, Located
from mconv.convert.sources.stored import StoredSource
from mconv.convert.spelling.table import Logical
from mconv.errors import FormatError
from mconv.shard.stages import LayerPlacement
from mconv.spec import ModelSpec

MOMENTS = ("exp_avg", "exp_avg_sq")
ALIGN = 64
"""Elements to whose multiple a parameter's start in a flat buffer is rounded up."""
FLAT_FILE = "distrib_optim.pt"
EARLIER = {
    "local": ("input_layernorm", "linear_proj"),
    "transformer_engine": ("linear_proj",),
}
"""Modules that megatron-core's layer makes before those that the table has in front of them, by `transformer_impl`."""

Name = tuple[str, tuple[int, ...]]
"""A parameter of a rank: our key of it, and its shape there."""


def buckets(
    checkpoint: Checkpoint, weights: StoredSource, tensors: Mapping[str, torch_dist.Global]
) -> dict[str, StoredSource]:
    """Return what megatron-core's `dp_reshardable` buckets hold, those of each model-parallel rank and model chunk."""
    layout, dialect = checkpoint.layout, DIALECTS["mcore"]
    assert layout is not None
    located: dict[str, dict[str, Located]] = {}
    for tp_rank, stage in layout.ranks:
        for chunk in range(layout.vpp):
            start = f"optimizer.distributed.dp_group_idx_{stage * layout.tp + tp_rank}.gbuf_idx_{chunk}."
            mine = {fqn: tensor for fqn, tensor in tensors.items() if fqn.startswith(start)}
            names = _names(checkpoint, weights.spec, tp_rank=tp_rank, stage=stage, chunk=chunk)
            for kind in (*MOMENTS, "param"):
                found = {_number(fqn): (fqn, tensor) for fqn, tensor in mine.items() if fqn.endswith(f".{kind}")}
                parts = [found[number] for number in sorted(found)]
                sizes = [tensor.shape[0] for _, tensor in parts]
                for (key, shape), bucket, at in places(names, sizes, where=f"{checkpoint.path}: {start}"):
                    located.setdefault(kind, {})[key] = _run(*parts[bucket], at, shape)
    return {
        kind: dataclasses.replace(
            weights, located=at, stored=spell.mp_rank_sources(dialect, weights.family, weights.spec, layout, at)
        )
        for kind, at in located.items()
    }  # fmt: skip


def _number(fqn: str) -> int:
    found = re.search(r"\.bucket_idx_(\d+)\.", fqn)
    return int(found[1]) if found else 0


def _names(checkpoint: Checkpoint, spec: ModelSpec, *, tp_rank: int, stage: int, chunk: int) -> list[Name]:
    """Return the parameters of a rank's model chunk in the order in which megatron-core makes them."""
    layout, family, dialect = checkpoint.layout, checkpoint.family, DIALECTS["mcore"]
    assert layout is not None
    local = getattr(checkpoint.common.get("args"), "transformer_impl", None) == "local"
    earlier = EARLIER["local" if local else "transformer_engine"]
    walk = [
        (place, names[0], logical)
        for place, names, logical in spell.rank_tensors(dialect, family, spec, layout)
        if (place.stage, place.chunk) == (stage, chunk)
    ]
    walk.sort(key=lambda item: _order(item[0], item[1], item[2], earlier))
    found = []
    for place, name, logical in walk:
        piece = spell.rank_piece(dialect, family, spec, layout, logical, tp_rank)
        key = mp_rank.key(tp_rank, place.stage, place.chunk, name, pp=layout.pp, vpp=layout.vpp)
        found.append((key, piece.shape))
    return found


def _order(place: LayerPlacement, name: str, logical: Logical, earlier: Sequence[str]) -> tuple[int, int, int]:
    """Return where a parameter comes in its model chunk: before, in or after the layers; which layer; early in it."""
    if logical.layer is not None:
        modules = name.split(".")
        return 1, place.local, next((i for i, module in enumerate(earlier) if module in modules), len(earlier))
    return (2, 1, 0) if name.startswith("output_layer") else (2, 0, 0) if name.startswith("decoder.final") else (0, 0, 0)


def places(names: Sequence[Name], lengths: Sequence[int], *, where: str) -> Iterator[tuple[Name, int, int]]:
    """Yield (parameter, bucket, start) of each in the flat buffers, which megatron-core fills from the last to the first.

    `lengths` are those of the buckets in elements, without the padding at their ends. Raises FormatError if it does not
    come out even.
    """
    # a (4, 8), b (10,), c (40,); lengths [74, 32] -> c bucket 0 at 0, b bucket 0 at 64 (40 rounded up), a bucket 1 at 0
    bucket, at = 0, 0
    for name, shape in reversed(names):
        if bucket < len(lengths) and at == lengths[bucket]:
            bucket, at = bucket + 1, 0
        start = -(-at // ALIGN) * ALIGN
        at = start + prod(shape)
        if bucket >= len(lengths) or at > lengths[bucket]:
            raise FormatError(f"{where} buffers of {list(lengths)} elements do not hold {name} {shape} at {start}")
        yield (name, shape), bucket, start
    if (bucket, at) != (len(lengths) - 1, lengths[-1]):
        raise FormatError(f"{where} buffers of {list(lengths)} elements hold more than this model's parameters")


def _run(fqn: str, tensor: torch_dist.Global, start: int, shape: tuple[int, ...]) -> Located:
    """Return a parameter's run of a bucket: the chunks that make it up, one for each replica that has a share of it."""
    stop = start + prod(shape)
    inside = sorted((c for c in tensor.chunks if start <= c.offsets[0] < stop), key=lambda c: c.offsets)
    ends = [start, *(c.offsets[0] + c.shape[0] for c in inside)]
    if [c.offsets[0] for c in inside] != ends[:-1] or ends[-1] != stop:
        raise FormatError(
            f"{fqn}: no chunks from {start} to {stop}, where a parameter of shape {shape} should lie; "
            "the model's parameters were in another order, or the buffers belong to another model"
        )
    return _joined([c.locate(fqn, tensor.dtype) for c in inside], shape)


def _joined(parts: Sequence[Located], shape: tuple[int, ...]) -> Located:
    first = dataclasses.replace(parts[0], shape=shape)
    return first if len(parts) == 1 else Joined(first.path, first.offset, first.dtype, shape, tuple(parts))


def flat(folder: Path, weights: StoredSource, ranks: Mapping[str, object]) -> dict[str, StoredSource]:
    """Return `distrib_optim.pt` of each rank: a buffer for each model chunk and kind, its buckets end to end."""
    located: dict[str, dict[str, Located]] = {}
    for rank in ranks:
        file = folder / rank / FLAT_FILE
        if not file.is_file():
            raise FormatError(f"{file} is missing; the optimizer's state is incomplete")
        state = archive.read(file)
        for number, names in enumerate(owned(weights, rank).values()):
            buffer = next(iter(state[number].values())) if isinstance(state, dict) and state.get(number) else None
            if not isinstance(buffer, dict) or not isinstance(buffer.get("param"), Located):
                raise FormatError(f"{file}: not one buffer for each kind of state, as Megatron-LM 0.7 and later write it")
            size = buffer["param"].shape[0]
            for (key, shape), _, at in places(names, [size], where=str(file)):
                for kind in (*MOMENTS, "param"):
                    whole = buffer[kind]
                    begin = whole.offset + at * whole.dtype.itemsize
                    located.setdefault(kind, {})[key] = dataclasses.replace(whole, offset=begin, shape=shape)
    return as_sources(weights, located)


# ---- a rank's file of mp_rank ----------------------------------------------------------------------------------------
def owned(weights: StoredSource, rank: str) -> dict[str, list[Name]]:
    """Return the parameters of a rank's file by model chunk, in the file's order, which is that of the model."""
    found: dict[str, list[Name]] = {}
    stored = {s.key for s in weights.stored}
    for key, where in weights.located.items():
        if key.startswith(f"{rank}/") and key in stored:
            found.setdefault(key.split("/")[1], []).append((key, where.shape))
    return found


def as_sources(weights: StoredSource, located: dict[str, dict[str, Located]]) -> dict[str, StoredSource]:
    """Return each kind as a source under the keys of the weights. Raises FormatError where one is incomplete."""
    for kind, at in located.items():
        if missing := [s.key for s in weights.stored if s.key not in at]:
            raise FormatError(f"{weights.label}: its optimizer has no {kind} of {', '.join(missing[:4])}")
    return {kind: dataclasses.replace(weights, located=at) for kind, at in located.items()}
