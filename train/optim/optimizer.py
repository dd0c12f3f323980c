"""megatron-core's optimizers, made to resume without Transformer Engine and Apex."""

from typing import Any

import torch

from mconv.convert.formats.dtype import in_torch
from mconv.train.config import TrainConfig
from mconv.train.megatron.collectives import largest
from mconv.train.megatron.imports import DistributedOptimizer, OptimizerConfig, get_megatron_optimizer, quiet
from mconv.train.megatron.optimizer import let_step_through
from mconv.train.model.precision import dtype_of

SAME = (
    "optimizer", "lr", "min_lr", "weight_decay", "adam_beta1", "adam_beta2", "adam_eps", "sgd_momentum", "clip_grad",
    "bf16", "fp16", "loss_scale", "initial_loss_scale", "min_loss_scale", "loss_scale_window", "hysteresis",
)  # fmt: skip
"""Fields that megatron-core's OptimizerConfig has under our names."""


def make_optimizer(chunks: list[Any], config: TrainConfig) -> Any:
    """Return megatron-core's optimizer over a model's chunks: fp32 main weights, clipping by the global norm."""
    options = OptimizerConfig(
        **{name: getattr(config, name) for name in SAME},
        params_dtype=in_torch(dtype_of(config)),
        use_distributed_optimizer=config.distributed_optimizer,
        overlap_param_gather=config.overlap_param_gather,
    )
    with quiet():
        optimizer = get_megatron_optimizer(options, chunks, use_gloo_process_groups=False)
    for part in parts(optimizer):
        if isinstance(part, DistributedOptimizer):
            let_step_through(part)
        if part.init_state_fn is None:  # megatron-core calls it all the same
            part.init_state_fn = lambda *_: None
    _make_state(optimizer)
    for inner in _inner(optimizer):
        _fuse(inner)
    return optimizer


def parts(optimizer: Any) -> list[Any]:
    """Return the optimizers that megatron-core chains: one where there are no experts."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


@torch.no_grad()
def clip_and_step(optimizer: Any, norm: float) -> None:
    """Clip and step, the second half of megatron-core's step, which shows no norm before the weights change."""
    for part in parts(optimizer):
        share = part.config.clip_grad / (norm + 1e-6)
        grads = [parameter.grad for parameter in part.get_parameters() if parameter.grad is not None]
        if 0 < share < 1 and grads:
            torch._foreach_mul_(grads, share)  # megatron-core's own makes a copy of each where Apex is not installed
    optimizer.step_with_ready_grads()


def steps_taken(optimizer: Any) -> int:
    """Return Adam's counter, of the rank that has one; 0 for other optimizers. All ranks call it."""
    counts = [int(state["step"]) for inner in _inner(optimizer) for state in inner.state.values() if "step" in state]
    return largest(max(counts, default=0))


def set_step(optimizer: Any, step: int) -> None:
    """Give each parameter a counter of its own that stands at `step`.

    After its own load megatron-core's DistributedOptimizer has one tensor for all, which Adam then counts up once per
    parameter, and in one format with the value of before the load.
    """
    for inner in _inner(optimizer):
        for state in inner.state.values():
            if isinstance(inner, torch.optim.Adam):
                state["step"] = torch.tensor(float(step))


def _make_state(optimizer: Any) -> None:
    """Give torch's optimizers the state that they make at their first step, before it.

    megatron-core reads `step` out of a state that does not exist until then (an AssertionError in
    `DistributedOptimizer.state_dict`), at a load, and at a save if every step so far was skipped. Its own remedy, a
    step on zero gradients, decays the weights.
    """
    for inner in _inner(optimizer):
        state: dict[Any, Any] = inner.state
        for group in inner.param_groups:
            adam = isinstance(inner, torch.optim.Adam)
            names = ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",) if group["momentum"] else ()
            for parameter in group["params"]:
                zeros = {name: torch.zeros_like(parameter.data) for name in names}
                state[parameter] = {**({"step": torch.tensor(0.0)} if adam else {}), **zeros}
        if isinstance(inner, torch.optim.Adam) and not state:  # a counter for a rank that has nothing to train
            state["nothing"] = {"step": torch.tensor(0.0)}


def _inner(optimizer: Any) -> list[torch.optim.Optimizer]:
    """Return torch's own optimizers inside: none on a rank without one, none with Transformer Engine or Apex."""
    kinds = (torch.optim.Adam, torch.optim.SGD)
    return [part.optimizer for part in parts(optimizer) if isinstance(part.optimizer, kinds)]


def _fuse(inner: torch.optim.Optimizer) -> None:
    """Let Adam take its step in one kernel, which torch does only where it is told to.

    On a CPU it saves a tenth of a step here, on a GPU temporaries as large as all weights. It is told for the length of a
    step: a checkpoint's `param_groups` stay what Megatron-LM writes and reads.
    """
    if isinstance(inner, torch.optim.Adam):
        inner.register_step_pre_hook(lambda adam, *_: _set_fused(adam, True))
        inner.register_step_post_hook(lambda adam, *_: _set_fused(adam, None))


def _set_fused(adam: torch.optim.Optimizer, fused: bool | None) -> None:
    """Set `fused`: then Adam wants each counter where its parameter is; `set_step` makes them on the CPU."""
    for group in adam.param_groups:
        group["fused"] = fused
        for parameter in group["params"] if fused else ():
            state: dict[str, Any] = adam.state[parameter]
            if state:
                state["step"] = state["step"].to(parameter.device)
