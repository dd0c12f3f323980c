"""SwiGLU and RMSNorm that keep only their inputs for the backward pass, and no intermediate results.

Written with autograd's own operations they keep three and four tensors as large as their result: of a LLaMA's layer, a
third of what it keeps. On a CPU both compute what those operations do, in their order of roundings; on a GPU each is one
kernel, which rounds once.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mconv.train.megatron.compiled import one_kernel


def swiglu(halves: Float[Tensor, "*rows gate_up"]) -> Float[Tensor, "*rows f"]:
    """Return silu(gate) * up of the output of a gated MLP's first linear: gate, then up."""
    made: Tensor = _SwiGLU.apply(halves)
    return made


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, halves: Float[Tensor, "*rows gate_up"]) -> Float[Tensor, "*rows f"]:
        ctx.save_for_backward(halves)
        made: Tensor = _gated(halves)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Float[Tensor, "*rows f"]) -> Float[Tensor, "*rows gate_up"]:
        made: Tensor = _gated_back(gradients[0], *ctx.saved_tensors)
        return made


def _gate(halves: Float[Tensor, "*rows gate_up"]) -> Float[Tensor, "*rows f"]:
    gate, up = halves.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def _gate_back(
    gradient: Float[Tensor, "*rows f"], halves: Float[Tensor, "*rows gate_up"]
) -> Float[Tensor, "*rows gate_up"]:
    """Return the gradient as one formula, for a compiler."""
    gate, up = halves.chunk(2, -1)
    share = torch.sigmoid(gate)
    return torch.cat([gradient * up * share * (1 + gate * (1 - share)), gradient * gate * share], -1)


def _gate_back_in_place(
    gradient: Float[Tensor, "*rows f"], halves: Float[Tensor, "*rows gate_up"]
) -> Float[Tensor, "*rows gate_up"]:
    """Return the gradient by four in-place operations: what autograd would do, bit for bit."""
    made = torch.empty_like(halves)
    (gate, up), (for_gate, for_up) = halves.chunk(2, -1), made.chunk(2, -1)
    open_ = torch.nn.functional.silu(gate)
    torch.mul(gradient, open_, out=for_up)
    torch.mul(gradient, up, out=open_)
    torch.ops.aten.silu_backward.grad_input(open_, gate, grad_input=for_gate)
    return made


_gated, _gated_back = one_kernel(_gate), one_kernel(_gate_back, plain=_gate_back_in_place)


def rms_norm(x: Float[Tensor, "*rows d"], weight: Float[Tensor, "d"], eps: float) -> Float[Tensor, "*rows d"]:
    """Return x / rms(x) in fp32, cast back, times weight: the order of roundings of transformers' LlamaRMSNorm.

    On a GPU it is torch's one kernel (from torch 2.9 on), which rounds once, behind the weight.
    """
    if x.is_cuda:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)
    made: Tensor = _RMSNorm.apply(x, weight, eps)
    return made


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "*rows d"], weight: Float[Tensor, "d"], eps: float
    ) -> Float[Tensor, "*rows d"]:
        wide = x.float()
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, inverse)
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    def backward(
        ctx: Any, *gradients: Float[Tensor, "*rows d"]
    ) -> tuple[Float[Tensor, "*rows d"] | None, Float[Tensor, "d"] | None, None]:
        x, weight, inverse = ctx.saved_tensors
        gradient, normed = gradients[0].float(), x.float() * inverse
        for_x = for_weight = None
        if ctx.needs_input_grad[1]:
            for_weight = (gradient * normed).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            gradient = gradient * weight.float()
            along = (gradient * normed).mean(-1, keepdim=True)
            for_x = ((gradient - normed * along) * inverse).to(x.dtype)
        return for_x, for_weight, None
