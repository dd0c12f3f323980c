"""An optimizer's state in a Megatron checkpoint: each kind of it (moments, main weights) is a checkpoint of the model.

Whatever the format, what comes out has the logical tensors, pieces and names of the weights, so that all that reads
weights (any cut, any layout) reads it too. Formats, as megatron-core 0.16 and its predecessors write them:

    global      torch_dist: `optimizer.state.KIND.` + the model's key (fully_reshardable, and without distribution)
    buckets     torch_dist: `...gbuf_idx_C...bucket_idx_B.KIND`, flat and cut at the replicas' shares (dp_reshardable)
    flat        mp_rank: the same buffers in `distrib_optim.pt`, whole
    numbered    mp_rank: torch's own state, by number of the parameter in its groups
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from mconv.convert import spell
from mconv.convert.checkpoint import Checkpoint
from mconv.convert.dialects import DIALECTS
from mconv.convert.formats import archive, mp_rank, torch_dist
from mconv.convert.formats.tensors import Joined, Located
from mconv.convert.table import Logical
from mconv.errors import FormatError
from mconv.shard.stages import Place

MOMENTS = ("exp_avg", "exp_avg_sq")
MAIN = ("param", "fp32_param")
"""What the fp32 main weights are called, with and without a distributed optimizer."""
ALIGN = 64
"""Elements to whose multiple a parameter's start in a flat buffer is rounded up."""
FLAT_FILE = "distrib_optim.pt"
EARLIER = {
    "local": ("layer.attn_norm", "layer.attn_out"),
    "transformer_engine": ("layer.attn_out",),
}
"""Rows that megatron-core's layer makes before those that the table has in front of them, by `transformer_impl`."""

Name = tuple[str, tuple[int, ...]]
"""A parameter of a rank: our key of it, and its shape there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerState:
    """What an Adam needs to go on."""

    moments: dict[str, Checkpoint]
    """`exp_avg` and `exp_avg_sq`: checkpoints of the same model."""
    main: Checkpoint
    """The weights that it steps: fp32 main weights, or those of the model where it has no others."""
    step: int
    """Steps taken."""
    grad_scaler: dict[str, Any] | None = None
    """The dynamic loss scale of fp16, as megatron-core's own has it."""


def with_padding(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint, the rows of padding read as vocabulary: the run that wrote them has trained them too."""
    assert checkpoint.layout is not None and checkpoint.dialect is not None
    spec = dataclasses.replace(checkpoint.spec, vocab_size=checkpoint.layout.padded_vocab)
    if checkpoint.format == "torch_dist":
        tensors, _ = torch_dist.open_folder(checkpoint.path)
        stored, located = spell.torch_dist_sources(checkpoint.family, spec, checkpoint.layout, tensors)
        return dataclasses.replace(checkpoint, spec=spec, stored=stored, located=located)
    dialect = DIALECTS[checkpoint.dialect]
    stored = spell.mp_rank_sources(dialect, checkpoint.family, spec, checkpoint.layout, checkpoint.located)
    return dataclasses.replace(checkpoint, spec=spec, stored=stored)


def open_state(checkpoint: Checkpoint) -> OptimizerState:
    """The optimizer's state beside a checkpoint's weights. Raises FormatError if there is none, or one unknown."""
    try:
        return _open_state(checkpoint)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, StopIteration) as error:  # of a hostile file
        said = f"{type(error).__name__}: {error}"
        raise FormatError(f"{checkpoint.path}: its optimizer's state is not as Megatron-LM writes it ({said})") from error


def _open_state(checkpoint: Checkpoint) -> OptimizerState:
    if checkpoint.format == "torch_dist":
        tensors, blobs = torch_dist.open_training(checkpoint.path)
        flat = any(".gbuf_idx_" in fqn for fqn in tensors)
        kinds = _buckets(checkpoint, tensors) if flat else _global(checkpoint, tensors)
        said = [checkpoint.common.get("optimizer"), *_own_objects(blobs)]
    elif checkpoint.format == "mp_rank":
        _, ranks = mp_rank.open_folder(checkpoint.path)
        flat = any((checkpoint.path / rank / FLAT_FILE).is_file() for rank in ranks)
        kinds = _flat(checkpoint, ranks) if flat else _numbered(checkpoint, ranks)
        said = [common.get("optimizer") for common in ranks.values()]
    else:
        raise FormatError(f"{checkpoint.path} is a {checkpoint.format} folder: it has weights, and no run to go on with")
    if missing := [kind for kind in MOMENTS if kind not in kinds]:
        raise FormatError(f"{checkpoint.path} has no optimizer state ({', '.join(missing)}): it can start a run only")
    main = next((kinds[name] for name in MAIN if name in kinds), checkpoint)
    return OptimizerState(
        moments={kind: kinds[kind] for kind in MOMENTS}, main=main, step=_step(checkpoint, said),
        grad_scaler=next(_under(said, "grad_scaler"), None),
    )  # fmt: skip


# ---- how far it had come ---------------------------------------------------------------------------------------------
def _own_objects(blobs: Mapping[str, torch_dist.Chunk]) -> Iterator[Any]:
    """What a distributed optimizer keeps among the chunks: `param_groups`, one object for each model-parallel rank."""
    for name, blob in blobs.items():
        if re.fullmatch(r"optimizer\..*optimizer/shard_\d+_\d+", name):
            yield archive.read(blob.path, start=blob.start, length=blob.length)


def _step(checkpoint: Checkpoint, said: list[Any]) -> int:
    """Adam's counter. It is the same for all parameters: megatron-core steps all or none."""
    found = [*_under(said, "step"), *_under(said, "common_step")]
    steps = {int(x.load() if isinstance(x, Located) else x) for x in found}
    if len(steps) != 1:
        raise FormatError(f"{checkpoint.path}: its optimizer's step should be one number, but is {sorted(steps) or None}")
    return steps.pop()


def _under(tree: Any, name: str) -> Iterator[Any]:
    """All values of a key, wherever it lies."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == name and value is not None:
                yield value
            else:
                yield from _under(value, name)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _under(value, name)


# ---- torch_dist, under the model's keys ------------------------------------------------------------------------------
def _global(checkpoint: Checkpoint, tensors: Mapping[str, torch_dist.Global]) -> dict[str, Checkpoint]:
    found: dict[str, dict[str, torch_dist.Global]] = {}
    for fqn, tensor in tensors.items():
        if named := re.fullmatch(r"optimizer\.state\.(exp_avg|exp_avg_sq|param|fp32_param)\.(.*)", fqn):
            found.setdefault(named[1], {})[named[2]] = tensor
    return {kind: _respelled(checkpoint, parts) for kind, parts in found.items()}


def _respelled(checkpoint: Checkpoint, tensors: dict[str, torch_dist.Global]) -> Checkpoint:
    assert checkpoint.layout is not None
    stored, located = spell.torch_dist_sources(checkpoint.family, checkpoint.spec, checkpoint.layout, tensors)
    _check_whole(checkpoint, {s.logical for s in stored})
    return dataclasses.replace(checkpoint, stored=stored, located=located)


def _check_whole(checkpoint: Checkpoint, have: set[Logical]) -> None:
    if missing := [str(logical) for logical in checkpoint.by_logical if logical not in have]:
        raise FormatError(f"{checkpoint.path}: its optimizer has no state of {', '.join(missing[:4])}")


# ---- flat buffers ----------------------------------------------------------------------------------------------------
def _buckets(checkpoint: Checkpoint, tensors: Mapping[str, torch_dist.Global]) -> dict[str, Checkpoint]:
    """megatron-core's `dp_reshardable`: buckets of each model-parallel rank and model chunk, chunked by parameter."""
    layout, dialect = checkpoint.layout, DIALECTS["mcore"]
    assert layout is not None
    located: dict[str, dict[str, Located]] = {}
    for tp_rank, stage in layout.ranks:
        for chunk in range(layout.vpp):
            start = f"optimizer.distributed.dp_group_idx_{stage * layout.tp + tp_rank}.gbuf_idx_{chunk}."
            mine = {fqn: tensor for fqn, tensor in tensors.items() if fqn.startswith(start)}
            names = _names(checkpoint, tp_rank=tp_rank, stage=stage, chunk=chunk)
            for kind in (*MOMENTS, "param"):
                found = {_number(fqn): (fqn, tensor) for fqn, tensor in mine.items() if fqn.endswith(f".{kind}")}
                buckets = [found[number] for number in sorted(found)]
                sizes = [tensor.shape[0] for _, tensor in buckets]
                for (key, shape), bucket, at in places(names, sizes, where=f"{checkpoint.path}: {start}"):
                    located.setdefault(kind, {})[key] = _run(*buckets[bucket], at, shape)
    return {
        kind: dataclasses.replace(
            checkpoint, located=at, format="mp_rank",
            stored=spell.mp_rank_sources(dialect, checkpoint.family, checkpoint.spec, layout, at),
        )
        for kind, at in located.items()
    }  # fmt: skip


def _number(fqn: str) -> int:
    found = re.search(r"\.bucket_idx_(\d+)\.", fqn)
    return int(found[1]) if found else 0


def _names(checkpoint: Checkpoint, *, tp_rank: int, stage: int, chunk: int) -> list[Name]:
    """The parameters of a rank's model chunk in the order in which megatron-core makes them."""
    layout, family, spec, dialect = checkpoint.layout, checkpoint.family, checkpoint.spec, DIALECTS["mcore"]
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


def _order(place: Place, name: str, logical: Logical, earlier: Sequence[str]) -> tuple[int, int, int]:
    """Where a parameter comes in its model chunk: before, in or after the layers; which layer; early in it or not."""
    if logical.layer is not None:
        row = logical.row
        return 1, place.local, earlier.index(row) if row in earlier else len(earlier)
    return (2, 1, 0) if name.startswith("output_layer") else (2, 0, 0) if name.startswith("decoder.final") else (0, 0, 0)


def places(names: Sequence[Name], buckets: Sequence[int], *, where: str) -> Iterator[tuple[Name, int, int]]:
    """(parameter, bucket, start) of each in the flat buffers, which megatron-core fills from the last to the first.

    `buckets` are their lengths in elements, without the padding at their ends. Raises FormatError if it does not come out
    even.
    """
    bucket, at = 0, 0
    for name, shape in reversed(names):
        if bucket < len(buckets) and at == buckets[bucket]:
            bucket, at = bucket + 1, 0
        start = -(-at // ALIGN) * ALIGN
        at = start + prod(shape)
        if bucket >= len(buckets) or at > buckets[bucket]:
            raise FormatError(f"{where} buffers of {list(buckets)} elements do not hold {name} {shape} at {start}")
        yield (name, shape), bucket, start
    if (bucket, at) != (len(buckets) - 1, buckets[-1]):
        raise FormatError(f"{where} buffers of {list(buckets)} elements hold more than this model's parameters")


def _run(fqn: str, tensor: torch_dist.Global, start: int, shape: tuple[int, ...]) -> Located:
    """A parameter's run of a bucket: the chunks that make it up, one for each replica that has a share of it."""
    stop = start + prod(shape)
    inside = sorted((c for c in tensor.chunks if start <= c.offsets[0] < stop), key=lambda c: c.offsets)
    ends = [start, *(c.offsets[0] + c.shape[0] for c in inside)]
    if [c.offsets[0] for c in inside] != ends[:-1] or ends[-1] != stop:
        raise FormatError(
            f"{fqn}: no chunks from {start} to {stop}, where a parameter of shape {shape} should lie; "
            "the model's parameters were in another order, or these are of another model"
        )
    return _joined([c.locate(fqn, tensor.dtype) for c in inside], shape)


def _joined(parts: Sequence[Located], shape: tuple[int, ...]) -> Located:
    first = dataclasses.replace(parts[0], shape=shape)
    return first if len(parts) == 1 else Joined(first.path, first.offset, first.dtype, shape, tuple(parts))


# ---- mp_rank ---------------------------------------------------------------------------------------------------------
def _owned(checkpoint: Checkpoint, rank: str) -> dict[str, list[Name]]:
    """The parameters of a rank's file by model chunk, in the file's order, which is that of the model."""
    found: dict[str, list[Name]] = {}
    stored = {s.key for s in checkpoint.stored}
    for key, where in checkpoint.located.items():
        if key.startswith(f"{rank}/") and key in stored:
            found.setdefault(key.split("/")[1], []).append((key, where.shape))
    return found


def _flat(checkpoint: Checkpoint, ranks: Mapping[str, Any]) -> dict[str, Checkpoint]:
    """`distrib_optim.pt` of each rank: a buffer for each model chunk and kind, its buckets end to end."""
    located: dict[str, dict[str, Located]] = {}
    for rank in ranks:
        file = checkpoint.path / rank / FLAT_FILE
        if not file.is_file():
            raise FormatError(f"{file} is missing; the optimizer's state is incomplete")
        state = archive.read(file)
        for number, names in enumerate(_owned(checkpoint, rank).values()):
            buffer = next(iter(state[number].values())) if isinstance(state, dict) and state.get(number) else None
            if not isinstance(buffer, dict) or not isinstance(buffer.get("param"), Located):
                raise FormatError(f"{file}: not one buffer for each kind of state, as Megatron-LM 0.7 and later write it")
            size = buffer["param"].shape[0]
            for (key, shape), _, at in places(names, [size], where=str(file)):
                for kind in (*MOMENTS, "param"):
                    whole = buffer[kind]
                    begin = whole.offset + at * whole.dtype.itemsize
                    located.setdefault(kind, {})[key] = dataclasses.replace(whole, offset=begin, shape=shape)
    return _beside(checkpoint, located)


def _numbered(checkpoint: Checkpoint, ranks: Mapping[str, Any]) -> dict[str, Checkpoint]:
    """torch's own state of each rank: numbers run through the groups, with weight decay and without."""
    located: dict[str, dict[str, Located]] = {}
    for rank, common in ranks.items():
        outer = common.get("optimizer")
        inner = outer.get("optimizer", outer) if isinstance(outer, dict) else None
        if not isinstance(inner, dict) or "state" not in inner:
            continue
        names = [name for chunk in _owned(checkpoint, rank).values() for name in chunk]
        where = f"{checkpoint.path / rank}: its optimizer"
        for index, group in enumerate(inner["param_groups"]):
            mine = [name for name in names if _decays(name) == bool(group.get("wd_mult", group["weight_decay"]))]
            if len(mine) != len(group["params"]):
                raise FormatError(
                    f"{where} has {len(group['params'])} parameters in group {index}, the model {len(mine)}"
                )
            mains = outer.get("fp32_from_fp16_params")
            for place, ((key, shape), number) in enumerate(zip(mine, group["params"], strict=True)):
                state = {kind: inner["state"][number][kind] for kind in MOMENTS}
                for kind, tensor in {**state, **({"param": mains[index][place]} if mains else {})}.items():
                    if not isinstance(tensor, Located) or tensor.shape != shape:
                        raise FormatError(f"{where}: {kind} of {key} should have shape {shape}")
                    located.setdefault(kind, {})[key] = tensor
    return _beside(checkpoint, located)


def _decays(name: Name) -> bool:
    """Megatron's rule for weight decay: not for biases, nor for what has one dimension."""
    return not name[0].endswith(".bias") and len(name[1]) > 1


def _beside(checkpoint: Checkpoint, located: dict[str, dict[str, Located]]) -> dict[str, Checkpoint]:
    """Kinds under the keys of the weights."""
    for kind, at in located.items():
        if missing := [s.key for s in checkpoint.stored if s.key not in at]:
            raise FormatError(f"{checkpoint.path}: its optimizer has no {kind} of {', '.join(missing[:4])}")
    return {kind: dataclasses.replace(checkpoint, located=at) for kind, at in located.items()}
