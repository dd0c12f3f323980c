"""Divide gradients by the sum of the loss mask over the global batch: a mean over weighted tokens."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mconv.train.megatron.imports import finalize_model_grads, parallel_state


class PerTokenLoss:
    """A callback of megatron-core, called when all micro batches of a step have gone backward.

    Its own `calculate_per_token_loss` divides by a count in int32, in which weights such as 0.1 cannot be told. Here
    the last stage adds up the loss masks of its micro batches, and all ranks divide by the sum over all replicas.
    """

    def __init__(self) -> None:
        self.counts: list[Tensor] = []
        self.positions = 0
        """Tokens of the last step's global batch, padding included, on every rank."""
        self.weight = 0.0
        """Sum of the loss weights of these tokens."""

    def begin(self) -> None:
        """Forget the step before, or an evaluation."""
        self.counts = []

    def add(self, mask: Float[Tensor, "b s"]) -> None:
        """Count a micro batch in: its weight and its size."""
        weight = mask.sum(dtype=torch.float64)
        self.counts.append(torch.stack([weight, torch.full_like(weight, mask.numel())]))

    def __call__(self, model: list[Any], num_tokens: Tensor | None = None, **groups: Any) -> None:
        """Reduce the gradients over ranks as megatron-core does, and divide them; `num_tokens` is its count."""
        finalize_model_grads(model, None, **groups)
        total = torch.zeros(2, dtype=torch.float64, device=torch.cuda.current_device())
        total = sum(self.counts, total)
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        torch.distributed.broadcast(total, src=last, group=parallel_state.get_pipeline_model_parallel_group())
        torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group())
        self.weight, positions = total.tolist()
        self.positions = int(positions)
        for chunk in model:
            chunk.scale_gradients(1 / self.weight if self.weight else 0.0)
