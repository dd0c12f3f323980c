"""Cross entropy over logits that are cut among tensor-parallel ranks, in place, without any copy of the logits.

The logits of a step are its largest tensor (positions x vocabulary). megatron-core's loss makes an fp32 copy of it, keeps
that until the backward pass and makes a gradient beside it; torch's own keeps a log-softmax and a gradient. Here rows are
taken a few at a time, widened to fp32, and the gradient is written over the logits, which nobody reads again.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mconv.train.megatron.imports import parallel_state

ROWS = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Logits widened together: on a CPU as many as its second cache holds, on a GPU as many as fill it."""
CUT_ROWS = 1 << 24
"""Logits widened together where ranks must agree on each part: few and large messages."""
SCALE = {torch.float16: 1 << 15}
"""Factor of a gradient while it lies in the logits' place: small probabilities are below fp16's range."""


class CrossEntropy(torch.autograd.Function):
    """-log softmax(logits)[label] per row, with the columns from `columns` on left out of the softmax."""

    @staticmethod
    def forward(
        ctx: Any, logits: Float[Tensor, "n cut_vocab"], labels: Int[Tensor, "n"], first: int, columns: int
    ) -> Float[Tensor, "n"]:
        """Return the losses of all rows, in fp32. `first` is this rank's first id, `columns` the number of its tokens."""
        kept = logits.detach()  # written to, where a gradient is asked for
        losses = torch.empty(len(labels), dtype=torch.float32, device=logits.device)
        for rows in _parts(kept):
            losses[rows] = _rows(kept[rows], labels[rows] - first, columns, gradient=ctx.needs_input_grad[0])
        ctx.save_for_backward(kept)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Float[Tensor, "n"]) -> tuple[Float[Tensor, "n cut_vocab"], None, None, None]:
        """Return the gradient that `forward` left in the logits' place, scaled by that of each row's loss."""
        (kept,) = ctx.saved_tensors
        scale = gradients[0] / SCALE.get(kept.dtype, 1)
        if kept.is_cuda:  # one kernel widens, multiplies and rounds; a CPU would make an fp32 copy of it all
            return kept.mul_(scale[:, None]), None, None, None
        for rows in _parts(kept):
            wide = kept[rows].float()
            wide *= scale[rows, None]
            if wide.data_ptr() != kept[rows].data_ptr():
                kept[rows] = wide
        return kept, None, None, None


def _parts(logits: Float[Tensor, "n cut_vocab"]) -> Iterator[slice]:
    size = CUT_ROWS if _ranks() > 1 else ROWS[logits.device.type]
    step = max(1, size // logits.shape[1])
    return (slice(start, start + step) for start in range(0, len(logits), step))


def _rows(
    logits: Float[Tensor, "n cut_vocab"], labels: Int[Tensor, "n"], columns: int, *, gradient: bool
) -> Float[Tensor, "n"]:
    """Return the losses of a few rows; with `gradient`, softmax - onehot is left in the place of their logits."""
    # logits 1 2 | 3 9 on two ranks, the last column padding, label 2: first 0 and 2, columns 2 and 1, labels here 2 and 0
    # -> loss log(e^1 + e^2 + e^3) - 3 = 0.4076, and in the logits' place 0.0900 0.2447 | -0.3348 0
    wide = logits[:, :columns].float()
    if wide.data_ptr() == logits.data_ptr() and not gradient:
        wide = wide.clone()
    highest = wide.amax(-1) if columns else wide.new_full((len(wide),), float("-inf"))
    _reduce(highest, torch.distributed.ReduceOp.MAX)
    mine = (labels >= 0) & (labels < columns)
    column = labels.clamp(0, max(columns - 1, 0))[:, None]
    wide -= highest[:, None]
    chosen = wide.gather(1, column)[:, 0].where(mine, 0.0) if columns else torch.zeros_like(highest)
    total = wide.exp_().sum(-1)
    both = torch.stack([total, chosen])
    _reduce(both, torch.distributed.ReduceOp.SUM)
    total, chosen = both
    if gradient:
        wide /= total[:, None]
        if columns:
            wide.scatter_add_(1, column, -mine.float()[:, None])
        if wide.data_ptr() != logits.data_ptr():
            logits[:, :columns] = wide.mul_(SCALE.get(logits.dtype, 1))
        logits[:, columns:] = 0
    return total.log() - chosen


def _ranks() -> int:
    return int(parallel_state.get_tensor_model_parallel_world_size())


def _reduce(values: Tensor, how: Any) -> None:
    """Reduce values over the ranks that share the vocabulary."""
    if _ranks() > 1:
        torch.distributed.all_reduce(values, op=how, group=parallel_state.get_tensor_model_parallel_group())
