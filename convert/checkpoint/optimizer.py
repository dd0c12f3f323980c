"""An optimizer's state in a Megatron checkpoint: each kind (moments, main weights) is a source of the model's tensors.

Whatever the format, what comes out has the logical tensors, pieces and names of the weights, so that all that reads
weights (any cut, any layout) reads it too. Formats, as megatron-core 0.16 and its predecessors write them:

    global      torch_dist: `optimizer.state.KIND.` + the model's key (fully_reshardable, and without distribution)
    buckets     torch_dist: `...gbuf_idx_C...bucket_idx_B.KIND`, flat and cut at the replicas' shares (dp_reshardable)
    flat        mp_rank: the same buffers in `distrib_optim.pt`, whole
    numbered    mp_rank: torch's own state, by number of the parameter in its groups
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.checkpoint.buffers import FLAT_FILE, MOMENTS, Name, as_sources, buckets, flat, owned
from mconv.convert.checkpoint.model import Checkpoint, SourceModel
from mconv.convert.dialects import DIALECTS, spell
from mconv.convert.formats import archive, mp_rank, torch_dist
from mconv.convert.formats.tensors import Located
from mconv.convert.sources.stored import StoredSource
from mconv.errors import FormatError
from mconv.shard.layout import Layout

MAIN = ("param", "fp32_param")
"""Names of the fp32 main weights, with and without a distributed optimizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerState:
    """The state that Adam resumes from."""

    moments: dict[str, StoredSource]
    """`exp_avg` and `exp_avg_sq`, under the names of the weights."""
    main: StoredSource
    """The weights that it steps: fp32 main weights, or those of the model where it has no others."""
    step: int
    """Steps taken."""
    grad_scaler: dict[str, Any] | None = None
    """The dynamic loss scale of fp16, as megatron-core's own has it."""


def with_padding(checkpoint: Checkpoint) -> StoredSource:
    """Return a checkpoint's tensors, the rows of padding read as vocabulary: the run that wrote them trained them too."""
    assert checkpoint.layout is not None and checkpoint.dialect is not None
    spec = dataclasses.replace(checkpoint.spec, vocab_size=checkpoint.layout.padded_vocab)
    if checkpoint.format == "torch_dist":
        tensors, _ = torch_dist.open_folder(checkpoint.path)
        stored, located = spell.torch_dist_sources(checkpoint.family, spec, checkpoint.layout, tensors)
        return dataclasses.replace(checkpoint.source, spec=spec, stored=stored, located=located)
    dialect = DIALECTS[checkpoint.dialect]
    stored = spell.mp_rank_sources(dialect, checkpoint.family, spec, checkpoint.layout, checkpoint.located)
    return dataclasses.replace(checkpoint.source, spec=spec, stored=stored)


def has_state(checkpoint: SourceModel) -> bool:
    """Return whether a checkpoint holds an optimizer's state beside its weights, of whatever kind."""
    if checkpoint.format == "torch_dist":
        return any(name.startswith("optimizer.") for part in torch_dist.open_training(checkpoint.path) for name in part)
    if checkpoint.format != "mp_rank":
        return False
    folders = [folder for folder in checkpoint.path.glob("mp_rank_*") if folder.is_dir()]
    files = (FLAT_FILE, mp_rank.OPTIMIZER_FILE)
    return bool(checkpoint.common.get("optimizer")) or any(
        (folder / name).is_file() for folder in folders for name in files
    )


def open_state(checkpoint: Checkpoint, *, padding: bool = False) -> OptimizerState:
    """Return the optimizer's state beside a checkpoint's weights, and with `padding` that of the padded rows too.

    Raises FormatError if there is none, or one unknown.
    """
    try:
        return _open_state(checkpoint, with_padding(checkpoint) if padding else checkpoint.source)
    except FormatError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, StopIteration) as error:  # of a hostile file
        said = f"{type(error).__name__}: {error}"
        raise FormatError(f"{checkpoint.path}: its optimizer's state is not as Megatron-LM writes it ({said})") from error


def _open_state(checkpoint: Checkpoint, weights: StoredSource) -> OptimizerState:
    if checkpoint.format == "torch_dist":
        tensors, blobs = torch_dist.open_training(checkpoint.path)
        kinds = (
            buckets(checkpoint, weights, tensors)
            if any(".gbuf_idx_" in fqn for fqn in tensors)
            else _global(checkpoint, weights, tensors)
        )
        said = [checkpoint.common.get("optimizer"), *_own_objects(blobs)]
    elif checkpoint.format == "mp_rank":
        _, ranks = mp_rank.open_folder(checkpoint.path)
        shared = any((checkpoint.path / rank / FLAT_FILE).is_file() for rank in ranks)
        kinds = (flat if shared else _numbered)(checkpoint.path, weights, ranks)
        said = [common.get("optimizer") for common in ranks.values()]
    else:
        raise FormatError(
            f"{checkpoint.path} is a {checkpoint.format} folder: it holds weights only, so no run can be resumed from it"
        )
    if missing := [kind for kind in MOMENTS if kind not in kinds]:
        raise FormatError(
            f"{checkpoint.path} has no optimizer state ({', '.join(missing)}): a run can start from it, but not resume"
        )
    main = next((kinds[name] for name in MAIN if name in kinds), weights)
    return OptimizerState(
        moments={kind: kinds[kind] for kind in MOMENTS}, main=main, step=_step(checkpoint, said),
        grad_scaler=next(_under(said, "grad_scaler"), None),
    )  # fmt: skip


# ---- how far it had come ---------------------------------------------------------------------------------------------
def _own_objects(blobs: Mapping[str, torch_dist.Chunk]) -> Iterator[Any]:
    """Yield what a distributed optimizer keeps among the chunks: `param_groups` of each model-parallel rank."""
    for name, blob in blobs.items():
        if re.fullmatch(r"optimizer\..*optimizer/shard_\d+_\d+", name):
            yield archive.read(blob.path, start=blob.start, length=blob.length)


def _step(checkpoint: Checkpoint, said: list[Any]) -> int:
    """Return Adam's counter. It is the same for all parameters: megatron-core steps all or none."""
    found = [*_under(said, "step"), *_under(said, "common_step")]
    steps = {int(x.load() if isinstance(x, Located) else x) for x in found}
    if not steps and checkpoint.common.get("opt_param_scheduler", {}).get("num_steps") == 0:
        return 0  # megatron-core leaves the counter out where every step so far was skipped
    if len(steps) != 1:
        raise FormatError(f"{checkpoint.path}: its optimizer's step should be one number, but is {sorted(steps) or None}")
    return steps.pop()


def _under(tree: Any, name: str) -> Iterator[Any]:
    """Yield all values of a key, wherever it lies."""
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
def _global(
    checkpoint: Checkpoint, weights: StoredSource, tensors: Mapping[str, torch_dist.Global]
) -> dict[str, StoredSource]:
    found: dict[str, dict[str, torch_dist.Global]] = {}
    for fqn, tensor in tensors.items():
        if named := re.fullmatch(r"optimizer\.state\.(exp_avg|exp_avg_sq|param|fp32_param)\.(.*)", fqn):
            found.setdefault(named[1], {})[named[2]] = tensor
    assert checkpoint.layout is not None
    return {kind: _respelled(weights, checkpoint.layout, parts) for kind, parts in found.items()}


def _respelled(weights: StoredSource, layout: Layout, tensors: dict[str, torch_dist.Global]) -> StoredSource:
    stored, located = spell.torch_dist_sources(weights.family, weights.spec, layout, tensors)
    found = dataclasses.replace(weights, stored=stored, located=located)
    if missing := [str(tensor) for tensor in weights.groups if tensor not in found.groups]:
        raise FormatError(f"{weights.label}: its optimizer has no state of {', '.join(missing[:4])}")
    return found


# ---- mp_rank ---------------------------------------------------------------------------------------------------------
def _numbered(folder: Path, weights: StoredSource, ranks: Mapping[str, Any]) -> dict[str, StoredSource]:
    """Return torch's own state of each rank: numbers run through the groups, with weight decay and without."""
    located: dict[str, dict[str, Located]] = {}
    for rank, common in ranks.items():
        outer = common.get("optimizer")
        inner = outer.get("optimizer", outer) if isinstance(outer, dict) else None
        if not isinstance(inner, dict) or "state" not in inner:
            continue
        names = [name for chunk in owned(weights, rank).values() for name in chunk]
        where = f"{folder / rank}: its optimizer"
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
                        found = f"shape {tensor.shape}" if isinstance(tensor, Located) else "no tensor"
                        raise FormatError(
                            f"{where} has {found} where {kind} of {key}, {shape}, is expected: its parameters are not in "
                            "Megatron-LM's order; --finetune takes the weights alone"
                        )
                    located.setdefault(kind, {})[key] = tensor
    return as_sources(weights, located)


def _decays(name: Name) -> bool:
    """Return whether Megatron decays a parameter: no bias, and nothing with one dimension."""
    return not name[0].endswith(".bias") and len(name[1]) > 1
