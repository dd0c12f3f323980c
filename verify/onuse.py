"""Modules that hold their weights only while they run: read from disk just before, forgotten just after.

A model bound so runs in its own forward, in the memory of its largest module.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

Fill = Callable[[dict[str, torch.Tensor]], None]
"""Fills parameters in place; named as within the module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What they are."""

    filling: torch.dtype
    """In which `fill` is given them."""
    dtype: torch.dtype
    """In which the module runs."""
    device: torch.device


@contextmanager
def present(module: nn.Module, fill: Fill, weights: Weights) -> Iterator[None]:
    """The module with its weights, for a while."""
    slots = [(part, name, p) for part in module.modules() for name, p in part._parameters.items() if p is not None]
    for part, name, parameter in slots:
        # NaN: what `fill` forgets is seen in the first logits
        real = torch.full(parameter.shape, torch.nan, dtype=weights.filling, device=weights.device)
        part._parameters[name] = nn.Parameter(real, requires_grad=False)
    try:
        fill({name: parameter.data for name, parameter in module.named_parameters()})
        for parameter in module.parameters():
            parameter.data = parameter.data.to(weights.dtype)
        yield
    finally:
        for part, name, parameter in slots:
            part._parameters[name] = parameter


def bind(module: nn.Module, fill: Fill, weights: Weights) -> None:
    """From now on `module`, which is on the meta device, fetches its weights whenever it runs."""
    open_now: list[object] = []

    def fetch(*_: object) -> None:
        context = present(module, fill, weights)
        context.__enter__()
        open_now.append(context)

    def forget(*_: object) -> None:
        if open_now:
            open_now.pop().__exit__(None, None, None)  # type: ignore[attr-defined]

    module.register_forward_pre_hook(fetch)
    module.register_forward_hook(forget, always_call=True)
