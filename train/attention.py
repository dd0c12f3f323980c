"""Core attention on `scaled_dot_product_attention`, and the norm: what megatron-core has in Transformer Engine only."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mconv.train.mcore import MegatronModule, TransformerConfig


class CoreAttention(MegatronModule):
    """softmax(q k^T) v for one rank's heads, causal; no dropout, no parameters. Serves CPU and GPU.

    Heads and query groups are read off the tensors, so any tensor-parallel cut of megatron-core's fits.
    """

    def __init__(self, config: TransformerConfig, *, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__(config=config)
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)

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
        out = torch.nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if attention_mask is None else ~attention_mask,
            is_causal=attention_mask is None,
            scale=self.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out.permute(2, 0, 1, 3).reshape(length, batch, -1)


class RMSNorm(torch.nn.Module):
    """x / rms(x) in fp32, cast back, times weight: the order of roundings of transformers' LlamaRMSNorm.

    The weight is whole on every tensor-parallel rank; under sequence parallelism each rank sees only its share of
    the positions, and the mark `sequence_parallel` makes megatron-core add up its gradient over the ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        device = torch.device("cpu") if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Normalise the last axis."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)
