"""megatron-core's Adam, and what it takes to resume it without Transformer Engine and Apex."""

from typing import Any

import torch

from mconv.train.config import TrainConfig
from mconv.train.mcore import DistributedOptimizer, OptimizerConfig, get_megatron_optimizer


def make_optimizer(chunks: list[Any], config: TrainConfig) -> Any:
    """megatron-core's optimizer over a model's chunks: AdamW, fp32 main weights, clipping by the global norm."""
    options = OptimizerConfig(
        optimizer="adam",
        lr=config.lr,
        min_lr=config.min_lr,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        adam_eps=config.adam_eps,
        clip_grad=config.clip_grad,
        bf16=config.bf16,
        params_dtype=torch.bfloat16 if config.bf16 else torch.float32,
        use_distributed_optimizer=config.distributed_optimizer,
    )
    optimizer = get_megatron_optimizer(options, chunks, use_gloo_process_groups=False)
    for part in parts(optimizer):
        if isinstance(part, DistributedOptimizer):
            _let_step_through(part)
    return optimizer


def parts(optimizer: Any) -> list[Any]:
    """The optimizers that megatron-core chains, which are one where there are no experts."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def prepare_load(optimizer: Any) -> None:
    """Give torch's Adam its state before a load.

    megatron-core reads `step` out of a state that does not exist until the first step is taken (an AssertionError in
    `DistributedOptimizer.state_dict`). Its own remedy, a step on zero gradients, decays the weights.
    """
    for inner in _inner(optimizer):
        for group in inner.param_groups:
            for parameter in group["params"]:
                if not inner.state[parameter]:
                    zeros = {name: torch.zeros_like(parameter.data) for name in ("exp_avg", "exp_avg_sq")}
                    inner.state[parameter] = {"step": torch.tensor(0.0), **zeros}


def set_step(optimizer: Any, step: int) -> None:
    """Give each parameter a counter of its own that stands at `step`.

    After its own load megatron-core's DistributedOptimizer has one tensor for all, which Adam then counts up once per
    parameter, and in one format with the value of before the load.
    """
    for inner in _inner(optimizer):
        for state in inner.state.values():
            state["step"] = torch.tensor(float(step))


def _inner(optimizer: Any) -> list[torch.optim.Optimizer]:
    """torch's own Adams inside: none on a rank that has nothing to train, none with Transformer Engine or Apex."""
    return [part.optimizer for part in parts(optimizer) if isinstance(part.optimizer, torch.optim.AdamW)]


def _let_step_through(part: Any) -> None:
    """Let a load pass that brings no `step` per parameter: megatron-core copies every key of Adam's state blindly."""
    original = part._set_main_param_and_optimizer_states

    def set_states(model_param: torch.nn.Parameter, tensors: dict[str, Any]) -> None:
        group, order = part.model_param_group_index_map[model_param]
        state = part.optimizer.state[part.optimizer.param_groups[group]["params"][order]]
        kept = {"step": state["step"]} if "step" in state else {}
        original(model_param, {**kept, **tensors})

    part._set_main_param_and_optimizer_states = set_states
