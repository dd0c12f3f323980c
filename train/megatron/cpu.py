"""Run megatron-core without a CUDA device: stand-ins for the CUDA calls that it makes unconditionally.

Nothing in its arithmetic changes. With a CUDA device `install` does nothing at all.
"""

import contextlib
from collections.abc import Callable
from typing import Any, no_type_check

import torch
from torch.overrides import TorchFunctionMode

_installed: list[TorchFunctionMode] = []

# Tensor.type() of a CPU tensor -> what the optimizer's asserts expect of a parameter on its device.
_TYPE_NAMES = {f"torch.{kind}Tensor": f"torch.cuda.{kind}Tensor" for kind in ("Float", "Half", "BFloat16")}


class _OnCpu(TorchFunctionMode):
    """Sends tensors that megatron-core creates on, or moves to, "cuda" to the CPU.

    Schedules, gradient clipping, optimizer and saver write `device="cuda"` in so many words.
    """

    @no_type_check  # called for every operation: a check here would be most of a tiny model's step
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        if kwargs:
            if "device" in kwargs and _is_cuda(kwargs["device"]):
                kwargs = {**kwargs, "device": "cpu"}
        elif func is torch.Tensor.type and len(args) == 1:
            name = func(*args)
            return _TYPE_NAMES.get(name, name)
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], "cpu", *args[2:])
        return func(*args, **(kwargs or {}))


def _is_cuda(device: Any) -> bool:
    """Return true for "cuda", "cuda:0", torch.device("cuda"), and an int, which torch reads as a CUDA index."""
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return device.startswith("cuda") if isinstance(device, str) else type(device) is int


class _Stream:
    """The stream of a device that has none: work is done when the call returns."""

    def wait_stream(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...


def _nothing(*_: Any, **__: Any) -> None: ...


def rng_state(*_: Any, **__: Any) -> torch.Tensor:
    """Return the CPU generator's state, for that of any device."""
    return torch.get_rng_state()


def set_rng_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
    """Set the CPU generator's state, for that of any device."""
    torch.set_rng_state(state)


def _manual_seed(seed: int) -> None:
    torch.manual_seed(seed)


STAND_INS: dict[str, Callable[..., Any]] = {
    # asked for the target of every buffer, always as `device=torch.cuda.current_device()`
    "current_device": lambda: "cpu",
    # waits for kernels; CPU kernels are done when they return
    "synchronize": _nothing,
    # returns cached device memory after offloading
    "empty_cache": _nothing,
    # the gradient buffers' overlap of reduction and computation
    "current_stream": lambda *_: _Stream(),
    "default_stream": lambda *_: _Stream(),
    "stream": lambda *_: contextlib.nullcontext(),
    # the model-parallel seeds; the CPU generator takes the device generator's part
    "get_rng_state": rng_state,
    "set_rng_state": set_rng_state,
    "manual_seed": _manual_seed,
}


def install() -> bool:
    """Install the stand-ins once per process if there is no CUDA device; say whether they are in place."""
    if torch.cuda.is_available():
        return False
    if not _installed:
        for name, stand_in in STAND_INS.items():
            setattr(torch.cuda, name, stand_in)
        mode = _OnCpu()
        mode.__enter__()  # for the life of the process: megatron-core calls us back from everywhere
        _installed.append(mode)
    return True
