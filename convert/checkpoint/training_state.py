"""The training state in a Megatron checkpoint: the optimizer's state, the progress, and the settings."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from mconv.convert.checkpoint.buffers import FLAT_FILE
from mconv.convert.formats import torch_dist
from mconv.convert.formats.tensors import Located

SETTINGS = (
    "optimizer", "lr", "min_lr", "lr_decay_style", "lr_warmup_iters", "weight_decay", "clip_grad", "global_batch_size",
    "micro_batch_size", "seq_length", "train_iters", "train_samples", "seed", "bf16", "fp16",
)  # fmt: skip
"""Args that a person asks about: those that a run that goes on would want to have again."""
BOUND = "Megatron-LM loads it at the same tp and pp, `mconv train --resume` at any layout"
KINDS = {
    "none": "none: the weights alone; a run can start from it, and not resume",
    "by parameter": "under the parameters' names, whole: loads at any tp, pp and number of replicas",
    "buckets": f"distributed, in flat buckets cut at the replicas' shares (dp_reshardable): {BOUND}",
    "flat": f"distributed, in flat buffers of each rank (distrib_optim.pt): {BOUND}",
    "numbered": f"in each rank's own file, under the parameters' numbers: {BOUND}",
    "unknown": "of a kind that mconv does not read; Megatron-LM may",
}
"""Kinds of optimizer state by their short name, in words."""


def facts(folder: Path, format: str, common: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a checkpoint's folder holds of a training, from its indices; None of a model as it is published.

    `common` is what the checkpoint holds beside its tensors.
    """
    if format not in ("torch_dist", "mp_rank"):
        return None
    kind, nbytes = (_of_torch_dist if format == "torch_dist" else _of_ranks)(folder, common)
    args = common.get("args")
    said = vars(args) if isinstance(args, Namespace) else {}
    spread = ""
    if kind == "by parameter" and said.get("use_distributed_optimizer") is not None:
        spread = "distributed over the replicas, " if said["use_distributed_optimizer"] else "not distributed, "
    return {
        "optimizer_state": kind,
        "optimizer_state_text": spread + KINDS[kind],
        "optimizer_bytes": nbytes,
        "iteration": _whole(common.get("iteration")),
        "consumed_samples": _whole(said.get("consumed_train_samples")),
        "settings": {name: said[name] for name in SETTINGS if _is_plain(said.get(name))},
    }


def _of_torch_dist(folder: Path, common: Mapping[str, Any]) -> tuple[str, int]:
    """Return the kind of optimizer state and its bytes, by the names of the tensors."""
    tensors, _ = torch_dist.open_training(folder)
    mine = {fqn: tensor for fqn, tensor in tensors.items() if fqn.startswith("optimizer.")}
    nbytes = sum(prod(tensor.shape) * tensor.dtype.itemsize for tensor in mine.values())
    if any(".gbuf_idx_" in fqn for fqn in mine):
        return "buckets", nbytes
    if any(fqn.startswith("optimizer.state.") for fqn in mine):
        return "by parameter", nbytes
    return ("unknown", nbytes) if mine else ("none", 0)


def _of_ranks(folder: Path, common: Mapping[str, Any]) -> tuple[str, int]:
    """Return the kind of optimizer state and its bytes, by the files and what the first rank's holds."""
    if shared := list(folder.glob(f"mp_rank_*/{FLAT_FILE}")):
        return "flat", sum(path.stat().st_size for path in shared)
    ranks = len(list(folder.glob("mp_rank_*")))
    nbytes = sum(where.nbytes for where in _located(common.get("optimizer")))
    return ("numbered", nbytes * ranks) if nbytes else ("none", 0)


def _located(tree: Any) -> Iterator[Located]:
    """Yield every tensor in a tree of objects."""
    if isinstance(tree, Located):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _located(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _located(value)


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def _is_plain(value: Any) -> bool:
    """Return whether a value says something and is safe to show: a number, a switch that is on, or a word."""
    return type(value) in (int, float) or value is True or (isinstance(value, str) and value.isprintable())
