"""Core attention by `attention_backend`: torch's, or Transformer Engine's where it is installed and can do it.

Only what lies between q, k, v and the output projection is exchanged, which has no weights: names, checkpoints, adapters
and norms are the same with either.
"""

import functools
from typing import Any

import torch

from mconv.errors import ConfigError, refuse
from mconv.train.config import TrainConfig
from mconv.train.megatron.imports import transformer_engine_attention
from mconv.train.model.attention import CoreAttention, CudnnAttention

MASKS = ("reset_attention_mask", "packing")
"""Fields that hide other positions than later ones."""


def core_attention(config: TrainConfig, *, dtype: torch.dtype) -> type:
    """Return the class that megatron-core's layer builds. Raises ConfigError if the one asked for cannot be had."""
    if config.attention_backend == "sdpa":
        return CoreAttention
    if config.attention_backend == "cudnn":
        if not torch.cuda.is_available():
            raise ConfigError("attention_backend cudnn: there is no CUDA device")
        return CudnnAttention
    theirs = transformer_engine_attention()
    against = [] if theirs else ["it is not installed here, or cannot be loaded: pip install transformer-engine[pytorch]"]
    if not torch.cuda.is_available():
        against.append("there is no CUDA device")
    if dtype == torch.float32:
        against.append("its kernels do not support fp32: give --bf16")
    against += [f"{name} needs a mask, which it would ignore" for name in MASKS if getattr(config, name)]
    if config.attention_backend == "transformer_engine":
        problems = [f"attention_backend transformer_engine: {reason}" for reason in against]
        refuse(problems, doing="choosing what computes attention", kind=ConfigError)
    return CoreAttention if against or theirs is None else causal_only(theirs)


@functools.cache
def causal_only(theirs: type) -> type:
    """Return Transformer Engine's causal attention, which ignores any mask, with an error in place of that."""

    def forward(self: Any, query: Any, key: Any, value: Any, attention_mask: Any, *args: Any, **options: Any) -> Any:
        if attention_mask is not None:
            raise ConfigError("attention_backend transformer_engine supports no mask but the causal one; use sdpa")
        return theirs.forward(self, query, key, value, attention_mask, *args, **options)  # type: ignore[attr-defined]

    return type("CausalOnly", (theirs,), {"forward": forward})
