"""Save and load the state of a run: all that it needs to go on, in megatron-core's torch_dist format."""

import dataclasses
import random
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mconv.convert.formats import torch_dist
from mconv.convert.peft import lora
from mconv.errors import FormatError
from mconv.spec import ModelSpec
from mconv.train.checkpoints import adapt
from mconv.train.checkpoints.metadata import args_now, precision
from mconv.train.megatron.imports import (
    ShardedObject,
    ShardedTensor,
    ShardedTensorFactory,
    StrictHandling,
    dict_list_map_inplace,
    dist_checkpointing,
    parallel_state,
    quiet,
    tensor_parallel,
)
from mconv.train.megatron.parallel import Parallel
from mconv.train.model import trusted
from mconv.train.model.engine import unwrap
from mconv.train.model.freeze import uneven
from mconv.train.optim.optimizer import set_step, steps_taken

CONTENT = {
    "singleton_local_shards": False,
    "chained_optim_avoid_prefix": True,
    # the one layout of optimizer state that another tp x pp x dp can read
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
}
"""Metadata that tells megatron-core how to lay out what it saves; Megatron-LM reads it back from the checkpoint."""


def state(
    *,
    iteration: int,
    consumed: int,
    chunks: list[Any],
    optimizer: Any,
    scheduler: Any,
    spec: ModelSpec,
    parallel: Parallel,
    settings: Mapping[str, Any],
    memory: dict[str, Any] | None = None,
    flops: float = 0.0,
) -> dict[str, Any]:
    """Return all that a run needs to go on, in megatron-core's form; every rank calls it.

    `settings` are args of the run's configuration; `memory` is what `load` is to give back: plain values; `flops` are the
    floating-point operations so far.
    """
    set_step(optimizer, steps_taken(optimizer))  # rank 0 writes the counter, and may have nothing to train itself
    return {
        **_sharded(chunks, optimizer, loading=False),
        "opt_param_scheduler": scheduler.state_dict(),
        "args": args_now(
            spec, parallel, chunks, {**settings, "iteration": iteration, "consumed_train_samples": consumed}
        ),
        "checkpoint_version": 3.0,
        "iteration": iteration,
        "num_floating_point_operations_so_far": flops,
        "mconv": dict(memory or {}),
    }


@dataclass(frozen=True, slots=True)
class Loaded:
    """The position of a run that was saved."""

    iteration: int = 0
    consumed: int = 0
    """Samples seen."""
    scheduled: int = 0
    """Samples of steps that were not skipped, by which the schedules count."""
    memory: dict[str, Any] = field(default_factory=dict)
    """Plain values that `state` was given to remember."""


@quiet()
def load(folder: Path, *, chunks: list[Any], optimizer: Any) -> Loaded:
    """Fill model, optimizer and random generators from a folder with `state`; without an optimizer, the model alone.

    Any tp x pp x dp may read what another one wrote; random states are restored where tp x pp are the same. Raises
    FormatError on anything missing.
    """
    trusted.check_all(folder)
    wanted = _sharded(chunks, optimizer, loading=True)
    try:
        common = dist_checkpointing.load_common_state_dict(str(folder))
        args = common["args"]
        if optimizer is None or _grid(args) != _grid_now():
            del wanted["rng_state"]
        loaded = dist_checkpointing.load(wanted, str(folder), strict=StrictHandling.RAISE_UNEXPECTED)
    except (dist_checkpointing.core.CheckpointingException, OSError, KeyError) as error:
        raise FormatError(f"{folder}: cannot resume from it: {error}") from error
    for name, chunk in _named(chunks).items():
        whole = unwrap(chunk)
        whole.load_state_dict(loaded[name], strict=adapt.adapted(whole) is None)
    if optimizer is not None:
        step, settings = _step_of(common["optimizer"]), _settings(optimizer)
        optimizer.load_state_dict(_recognised(_counted(loaded["optimizer"], step), settings))
        for group, kept in zip(optimizer.param_groups, settings, strict=True):
            group.update(kept)
        set_step(optimizer, step)
    if "rng_state" in loaded:
        _set_rng(loaded["rng_state"][0])
    return Loaded(
        iteration=int(common["iteration"]),
        consumed=int(args.consumed_train_samples),
        scheduled=int(common["opt_param_scheduler"]["num_steps"]),
        memory=common.get("mconv", {}),
    )


def _counted(state: dict[str, Any], step: int) -> dict[str, Any]:
    """Return Adam's state with its step counter, which megatron-core leaves out at 0 (when every step was skipped)."""
    moments = state.get("optimizer", state).get("state", {})
    if any("exp_avg" in one for one in moments.values() if isinstance(one, dict)):
        moments.setdefault("common_step", torch.tensor(float(step)))
    return state


RATES = ("max_lr", "min_lr", "start_wd", "end_wd")
"""Settings that all groups share, and by which megatron-core from 0.19 on recognises the saved ones, too."""


def _recognised(state: dict[str, Any], settings: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the state with the current rates in its groups: megatron-core finds groups again by their rates."""
    shared = {name: settings[0][name] for name in RATES if settings and name in settings[0]}
    for group in state.get("optimizer", state).get("param_groups", ()):  # none on a stage with nothing to train
        group.update(shared)
    return state


def _settings(optimizer: Any) -> list[dict[str, Any]]:
    """Return rates, betas and decay of each group: the configuration's, which a load would replace by the saved ones."""
    return [{n: x for n, x in group.items() if n not in ("params", "step")} for group in optimizer.param_groups]


def lora_of(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint says of its adapter. Raises FormatError if it is of a run that trained a model."""
    common = torch_dist.open_folder(folder)[1]
    found = lora.of_args(common)
    if found is None:
        raise FormatError(f"{folder} is of a run without LoRA; resume it without lora_rank, or give another --save")
    shared = getattr(common["args"], "use_distributed_optimizer", None)
    return {**found, "distributed_optimizer": shared, "precision": precision(common)}


def _sharded(chunks: list[Any], optimizer: Any, *, loading: bool) -> dict[str, Any]:
    """Return what is spread over ranks: weights, optimizer state, random states."""
    wholes = {name: unwrap(chunk) for name, chunk in _named(chunks).items()}
    weights = {n: adapt.kept(whole, whole.sharded_state_dict(metadata=dict(CONTENT))) for n, whole in wholes.items()}
    (pp, tp), (pp_rank, tp_rank) = _grid_now(), _place()
    rng = ShardedObject(
        "rng_state", [_rng()], (pp, tp), (pp_rank, tp_rank), replica_id=parallel_state.get_data_parallel_rank()
    )
    if optimizer is None:
        return {**weights, "rng_state": rng}
    states = optimizer.sharded_state_dict(
        weights if len(chunks) > 1 else weights["model"], is_loading=loading, metadata=dict(CONTENT)
    )
    if uneven([unwrap(chunk) for chunk in chunks]):
        dict_list_map_inplace(_a_layer_apart, states)
    return {**weights, "optimizer": states, "rng_state": rng}


def _a_layer_apart(state: Any) -> Any:
    """Return the state of one layer under a name of its own.

    megatron-core takes layers for parts of one tensor, which must be whole to be saved and loaded; frozen ones have none.
    """
    if isinstance(state, ShardedTensorFactory):
        build = state.build_fn
        return dataclasses.replace(state, build_fn=lambda *given: dict_list_map_inplace(_a_layer_apart, build(*given)))
    if not isinstance(state, ShardedTensor) or not state.prepend_axis_num:
        return state
    return dataclasses.replace(
        state, key=state.key.replace("layers.", f"layers.{state.global_offset[0]}.", 1), prepend_axis_num=0,
        global_shape=state.global_shape[1:], global_offset=state.global_offset[1:],
        axis_fragmentations=state.axis_fragmentations[1:],
    )  # fmt: skip


def _named(chunks: list[Any]) -> dict[str, Any]:
    """Return a rank's parts of the model under the names that Megatron-LM gives them."""
    return {"model": chunks[0]} if len(chunks) == 1 else {f"model{i}": chunk for i, chunk in enumerate(chunks)}


def _grid_now() -> tuple[int, int]:
    size = parallel_state.get_pipeline_model_parallel_world_size
    return size(), parallel_state.get_tensor_model_parallel_world_size()


def _grid(args: Namespace) -> tuple[int, int]:
    return args.pipeline_model_parallel_size, args.tensor_model_parallel_size


def _place() -> tuple[int, int]:
    return parallel_state.get_pipeline_model_parallel_rank(), parallel_state.get_tensor_model_parallel_rank()


def _step_of(optimizer: dict[str, Any]) -> int:
    """Return Adam's step counter, from the two places where megatron-core's optimizers keep it."""
    inner = optimizer.get("optimizer", optimizer)
    steps = [group["step"] for group in inner["param_groups"] if "step" in group]
    return int(
        steps[0] if steps else inner.get("state", {}).get("common_step", 0)
    )  # none before the first step, nor of sgd


def _rng() -> dict[str, Any]:
    """Return the state of every random generator, under the names that Megatron-LM gives them."""
    return {
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": torch.cuda.get_rng_state(),
        "rng_tracker_states": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }


def _set_rng(states: dict[str, Any]) -> None:
    random.setstate(states["random_rng_state"])
    np.random.set_state(states["np_rng_state"])
    torch.set_rng_state(states["torch_rng_state"])
    torch.cuda.set_rng_state(states["cuda_rng_state"])
    tensor_parallel.get_cuda_rng_tracker().set_states(states["rng_tracker_states"])
