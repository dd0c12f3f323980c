"""Modules that hold their weights only while they run: read from disk just before, released just after.

A model whose modules are streamed keeps its own forward and needs the memory of its largest module.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

Fill = Callable[[dict[str, torch.Tensor]], None]
"""Fills parameters in place; their names are relative to the module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOptions:
    """Dtypes and device of streamed weights."""

    load_dtype: torch.dtype
    """Dtype of the parameters that `Fill` is called with."""
    dtype: torch.dtype
    """Dtype in which the module runs."""
    device: torch.device


@contextmanager
def loaded(module: nn.Module, fill: Fill, weights: WeightOptions) -> Iterator[None]:
    """Give a module its weights within the context."""
    slots = [(part, name, p) for part in module.modules() for name, p in part._parameters.items() if p is not None]
    for part, name, parameter in slots:
        # NaN: a parameter that `fill` leaves out shows in the first logits
        real = torch.full(parameter.shape, torch.nan, dtype=weights.load_dtype, device=weights.device)
        part._parameters[name] = nn.Parameter(real, requires_grad=False)
    try:
        fill({name: parameter.data for name, parameter in module.named_parameters()})
        for parameter in module.parameters():
            parameter.data = parameter.data.to(weights.dtype)
        yield
    finally:
        for part, name, parameter in slots:
            part._parameters[name] = parameter


def stream_weights(module: nn.Module, fill: Fill, weights: WeightOptions) -> None:
    """Make `module`, which is on the meta device, load its weights whenever it runs."""
    open_now: list[object] = []

    def load(*_: object) -> None:
        context = loaded(module, fill, weights)
        context.__enter__()
        open_now.append(context)

    def release(*_: object) -> None:
        if open_now:
            open_now.pop().__exit__(None, None, None)  # type: ignore[attr-defined]

    module.register_forward_pre_hook(load)
    module.register_forward_hook(release, always_call=True)
