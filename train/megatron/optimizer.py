"""The only uses of private names of megatron-core's DistributedOptimizer."""

from typing import Any

import torch


def kept_slice(part: Any, parameter: torch.nn.Parameter) -> slice:
    """Return the elements of a parameter, laid flat, whose state this replica keeps."""
    found = part._get_model_param_range_map(parameter)["param"]
    return slice(found.start, found.end)


def let_step_through(part: Any) -> None:
    """Let a load pass that brings no `step` per parameter: megatron-core copies every key of Adam's state blindly."""
    original = part._set_main_param_and_optimizer_states

    def set_states(model_param: torch.nn.Parameter, tensors: dict[str, Any]) -> None:
        group, order = part.model_param_group_index_map[model_param]
        state = part.optimizer.state[part.optimizer.param_groups[group]["params"][order]]
        counter = {"step": state["step"]} if "step" in state else {}
        original(model_param, {**counter, **tensors})

    part._set_main_param_and_optimizer_states = set_states
