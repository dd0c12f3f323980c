"""Compile pointwise functions to one kernel on a GPU if torch can; elsewhere they run as they are written."""

import functools
import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any, no_type_check

import torch

OFF = "MCONV_COMPILE"
"""Set to 0 in the environment, nothing is compiled."""


def one_kernel(function: Callable[..., Any], *, plain: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Return `function`, compiled at its first call with a GPU's tensors; `plain`, or itself, on a CPU or on failure.

    A compiler that does not work costs time, not the run: its first error is told, and `plain` is called from then on.
    """
    return _OneKernel(function, plain or function)


class _OneKernel:
    def __init__(self, function: Callable[..., Any], plain: Callable[..., Any]) -> None:
        self.function, self.plain = function, plain
        self.compiled: Callable[..., Any] | None = None
        self.works = True

    @no_type_check  # called dozens of times a micro batch
    def __call__(self, *args: Any, **options: Any) -> Any:
        if not (_on_gpu(args[0]) and self.works and can_compile()):
            return self.plain(*args, **options)
        try:
            self.compiled = self.compiled or torch.compile(self.function)
            return self.compiled(*args, **options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self.works = False
            first = str(error).strip().partition("\n")[0]
            warnings.warn(f"{self.function.__name__} runs uncompiled, and slower: {first}", RuntimeWarning, stacklevel=2)
            return self.plain(*args, **options)


def _on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda


@functools.cache
def can_compile() -> bool:
    """Return whether torch finds what it compiles with: Triton, and a C compiler for Triton's launchers."""
    compiler = any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
    return compiler and importlib.util.find_spec("triton") is not None and os.environ.get(OFF) != "0"
