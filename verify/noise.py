"""The noise floor of a model on a probe: its distance from itself when sums are taken in another order.

No two programs sum a matrix product in the same order, so no two agree to the last bit; how far correct programs are
apart depends on the model. A run under `ReorderedSums` measures it: inner products in two parts, as two tensor-parallel
ranks would compute them, and attention step by step instead of in one fused kernel.
"""

from collections.abc import Callable
from typing import Any, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

F = torch.nn.functional
BLOCK = 1 << 21
"""Attention scores in memory at once."""
PRODUCTS: tuple[Callable[..., Any], ...] = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


class ReorderedSums(TorchFunctionMode):
    """Makes linears and attention sum in another order within the context; values change by rounding only."""

    @no_type_check  # called for every operation
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and not torch.compiler.is_compiling():
            return _linear(*args, **kwargs)
        if func in PRODUCTS and not kwargs and args[1].dim() == 2 and args[0].dim() > 1:
            return _parts(args[0], args[1])
        if func is F.scaled_dot_product_attention:
            with torch._C.DisableTorchFunction():
                return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = _parts(x, weight.t())
    return out if bias is None else out + bias


def _parts(x: Tensor, weight: Tensor) -> Tensor:
    """Return x [... k] @ weight [k n] as the sum of two unequal parts of k: some kernels cut k in half themselves."""
    cut = weight.shape[0] // 3
    if not cut:
        return torch.matmul(x, weight)
    with torch._C.DisableTorchFunction():
        return torch.matmul(x[..., cut:], weight[cut:]).add_(torch.matmul(x[..., :cut], weight[:cut]))


def _attention(
    query: Float[Tensor, "b h s d"],
    key: Float[Tensor, "b g t d"],
    value: Float[Tensor, "b g t e"],
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "b h s e"]:
    """Return scaled dot product attention, step by step in fp32, a block of queries at a time."""
    heads = query.shape[1]
    key, value = (x.float().repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    factor, step = scale or query.shape[-1] ** -0.5, max(1, BLOCK // (query[..., 0, 0].numel() * key.shape[2]))
    out = torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=query.device)
    for start in range(0, query.shape[2], step):
        asked = query[:, :, start : start + step].float() * factor
        seen = min(start + step, key.shape[2]) if is_causal else key.shape[2]
        scores = asked @ key[:, :, :seen].transpose(-2, -1)
        if is_causal:
            after = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).triu(start + 1)
            scores.masked_fill_(after, -torch.inf)
        if attn_mask is not None:
            part = attn_mask[..., start : start + step, :] if attn_mask.shape[-2] > 1 else attn_mask
            scores = scores.masked_fill_(~part, -torch.inf) if part.dtype == torch.bool else scores.add_(part)
        out[:, :, start : start + step] = scores.softmax(dim=-1) @ value[:, :, :seen]
    return out
