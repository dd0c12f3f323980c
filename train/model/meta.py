"""Modules without memory: parameters that have a shape and no storage, until somebody gives them one."""

from collections.abc import Callable
from typing import Any, no_type_check

import torch
from torch.overrides import TorchFunctionMode


class OnMeta(TorchFunctionMode):
    """A context in which every tensor is created without memory, whatever device its creator names.

    `torch.device("meta")` is not enough: megatron-core names the device in so many words.
    """

    @no_type_check
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if "device" in kwargs:
            kwargs = {**kwargs, "device": "meta"}
        with torch.device("meta"):
            return func(*args, **kwargs)
