"""Core attention on `scaled_dot_product_attention`, and the norms: what megatron-core has in Transformer Engine only."""

import contextlib
import math
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mconv.train.megatron.imports import MegatronModule, TransformerConfig, tensor_parallel
from mconv.train.model.elementwise import rms_norm

CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
]  # fmt: skip


@lru_cache(maxsize=1)
def window_mask(length: int, window: int, device: torch.device) -> Bool[Tensor, "s s"]:
    """Return True where a query may look: at itself and the `window` - 1 positions before it; shared by all layers."""
    at = torch.arange(length, device=device)
    back = at[:, None] - at
    return (back >= 0) & (back < window)


class CoreAttention(MegatronModule):
    """softmax(q k^T) v for one rank's heads, causal; no parameters. Serves CPU and GPU.

    Heads and query groups are read off the tensors, so any tensor-parallel cut of megatron-core's fits. With a
    `window_size` (keys before, 0) in the config a query sees only that many keys before its own. Dropout draws from the
    generator that megatron-core keeps for each tensor-parallel rank, whose heads are others.
    """

    def __init__(self, config: TransformerConfig, *, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__(config=config)
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)
        self.window = config.window_size[0] + 1 if config.window_size else None

    def forward(
        self,
        query: Float[Tensor, "s b n h"],
        key: Float[Tensor, "s b g h"],
        value: Float[Tensor, "s b g h"],
        attention_mask: Bool[Tensor, "#b #n s s"] | None,
        /,
        **_: Any,
    ) -> Float[Tensor, "s b nh"]:
        """Attend; `attention_mask` is megatron-core's (True hides a position) and replaces the causal mask."""
        length, batch = query.shape[:2]
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        seen = None if attention_mask is None else ~attention_mask
        if self.window is not None and self.window < length:
            near = window_mask(length, self.window, q.device)
            seen = near if seen is None else seen & near
        if seen is not None and q.shape[1] != k.shape[1]:
            # On a GPU no kernel but the plain one, which keeps every score, takes a mask *and* shared keys.
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        dropout = self.config.attention_dropout if self.training else 0.0
        # Under sequence parallelism the whole block draws from that generator, and it must not be forked twice.
        forked = dropout and not self.config.sequence_parallel
        with tensor_parallel.get_cuda_rng_tracker().fork() if forked else contextlib.nullcontext():
            out = torch.nn.functional.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=seen,
                dropout_p=dropout,
                is_causal=seen is None,
                scale=self.scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        return out.permute(2, 0, 1, 3).reshape(length, batch, -1)


class CudnnAttention(CoreAttention):
    """Core attention by cuDNN's kernel where it can: unlike torch's flash kernel it is made for Hopper GPUs."""

    def forward(self, *args: Any, **options: Any) -> Float[Tensor, "s b nh"]:
        """Attend."""
        with sdpa_kernel(CUDNN_FIRST, set_priority=True):
            return super().forward(*args, **options)


class RMSNorm(torch.nn.Module):
    """A norm with a weight: `elementwise.rms_norm`.

    The weight is whole on every tensor-parallel rank; under sequence parallelism each rank sees only its share of
    the positions, and the mark `sequence_parallel` makes megatron-core add up its gradient over the ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = _replicated(1.0, config, hidden_size)

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Normalise the last axis."""
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(torch.nn.Module):
    """torch's layer_norm, with the bias that comes with it; weight and bias are kept as RMSNorm keeps its weight."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = _replicated(1.0, config, hidden_size)
        self.bias = _replicated(0.0, config, hidden_size)

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Normalise the last axis."""
        return torch.nn.functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


def _replicated(value: float, config: TransformerConfig, size: int) -> torch.nn.Parameter:
    """Return a vector that every tensor-parallel rank holds whole, marked for megatron-core."""
    device = torch.device("cpu") if config.use_cpu_initialization else torch.cuda.current_device()
    parameter = torch.nn.Parameter(torch.full((size,), value, dtype=config.params_dtype, device=device))
    parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    return parameter
