"""One optimizer step and one evaluation, through megatron-core's schedules."""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mconv.errors import CheckFailed
from mconv.train import log as logs
from mconv.train.boundaries import attention_mask, rope_at
from mconv.train.engine import unwrap
from mconv.train.length import batch_size
from mconv.train.mcore import get_forward_backward_func, parallel_state
from mconv.train.run import Run

Batches = Iterator[dict[str, Tensor]]


def step(run: Run, feed: Batches | None) -> logs.Step:
    """One optimizer step over one global batch."""
    began = time.perf_counter()
    for chunk in run.chunks:
        chunk.zero_grad_buffer()
    run.optimizer.zero_grad()
    loss = _forward_backward(run, feed, forward_only=False)
    if not math.isfinite(loss):
        raise CheckFailed(f"loss is {loss} at iteration {run.iteration + 1}; the last checkpoint is {run.saved}")
    taken, norm, _ = run.optimizer.step()
    size = batch_size(run.config, run.consumed)
    run.iteration += 1
    run.consumed += size
    if taken:
        run.scheduler.step(size)
    seconds = time.perf_counter() - began
    return logs.Step(
        iteration=run.iteration,
        consumed_samples=run.consumed,
        loss=loss,
        grad_norm=None if norm is None else float(norm),
        lr=float(run.optimizer.param_groups[0]["lr"]),
        seconds=seconds,
        tokens_per_second=run.normalise.positions / seconds,
        global_batch_size=size,
        loss_scale=float(run.optimizer.get_loss_scale()),
        skipped=int(not taken),
    )


@torch.no_grad()
def evaluate(run: Run, feed: Batches | None) -> float:
    """Mean loss over the next `eval_iters` global batches of validation data."""
    for chunk in run.chunks:
        chunk.eval()
    losses = [_forward_backward(run, feed, forward_only=True) for _ in range(run.config.eval_iters)]
    for chunk in run.chunks:
        chunk.train()
    return sum(losses) / len(losses)


def _forward_backward(run: Run, feed: Batches | None, *, forward_only: bool) -> float:
    """megatron-core's schedule over one global batch; the mean loss over its tokens, on every rank."""
    config = run.config
    size = config.global_batch_size if forward_only else batch_size(config, run.consumed)
    run.normalise.begin()
    parts = get_forward_backward_func()(
        forward_step_func=partial(_forward, run),
        data_iterator=feed,
        model=run.chunks,
        num_microbatches=size // (config.micro_batch_size * parallel_state.get_data_parallel_world_size()),
        seq_length=run.seq_length,
        micro_batch_size=config.micro_batch_size,
        forward_only=forward_only,
    )
    # fp64 would be exact; fp32 sums over micro batches agree to about 1e-7
    total = torch.stack(parts).sum(0) if parts else torch.zeros(2, device=torch.cuda.current_device())
    torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group())
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    torch.distributed.broadcast(total, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    return float(total[0] / total[1])


def _forward(run: Run, feed: Batches | None, model: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """One stage's forward over one micro batch, in the form that megatron-core's schedules call."""
    batch = next(feed) if feed else {}
    positions, mask = batch.get("position_ids"), attention_mask(batch.get("documents"))
    with rope_at(unwrap(model), positions if run.config.reset_position_ids or run.config.packing else None):
        output = model(batch.get("tokens"), positions, mask, labels=batch.get("labels"))
    return output, lambda losses: _loss(run, batch["loss_mask"], losses)  # on the last stage, which has a batch


def _loss(run: Run, mask: Float[Tensor, "b s"], losses: Float[Tensor, "b s"]) -> tuple[Tensor, Tensor, Tensor]:
    """(sum to differentiate, tokens for megatron-core to count, both for the log): `normalise` divides it."""
    run.normalise.add(mask)
    total, tokens = (losses * mask).sum(), mask.sum()
    return total, tokens.int(), torch.stack([total.detach(), tokens])
