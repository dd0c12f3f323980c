"""The noise floor of one model on one probe: what the same arithmetic gives when its sums are taken in another order.

No two programs add up a matrix product alike, so no two of them agree to the last bit; how far apart right ones lie
depends on the model. A run under `OtherOrder` measures it: inner products in two parts, as two tensor-parallel ranks
would take them, and attention step by step instead of in one fused kernel.
"""

from collections.abc import Callable
from typing import Any, no_type_check

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

F = torch.nn.functional
PRODUCTS: tuple[Callable[..., Any], ...] = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


class OtherOrder(TorchFunctionMode):
    """Within it, linears and attention sum in another order; every value stays the same but for rounding."""

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
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = _parts(x, weight.t())
    return out if bias is None else out + bias


def _parts(x: Tensor, weight: Tensor) -> Tensor:
    """x [... k] @ weight [k n] in two parts of k: uneven ones, for at a half some processors' own kernels cut as well."""
    cut = weight.shape[0] // 3
    if not cut:
        return torch.matmul(x, weight)
    with torch._C.DisableTorchFunction():
        return torch.matmul(x[..., cut:], weight[cut:]) + torch.matmul(x[..., :cut], weight[:cut])
