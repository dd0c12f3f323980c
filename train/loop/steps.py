"""One optimizer step, through megatron-core's schedules."""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mconv.train.config.length import batch_size
from mconv.train.logs import log as logs
from mconv.train.loop import guard
from mconv.train.loop.run import Run
from mconv.train.megatron.imports import get_canonical_lr_for_logging, get_forward_backward_func, parallel_state
from mconv.train.model.boundaries import attention_mask, rope_at
from mconv.train.model.engine import unwrap
from mconv.train.model.loss import counts
from mconv.train.optim.optimizer import clip_and_step

Batches = Iterator[dict[str, Tensor]]
Feeds = list[Batches | None]
"""One for each of a rank's chunks; None for one that needs neither tokens nor labels."""
SUMS = 6
"""Loss, its weight, and `loss.counts`: what is added up over micro batches and replicas."""


def step(run: Run, feed: Feeds, *, again: Callable[[], Feeds]) -> logs.Step:
    """Take one optimizer step over one global batch; `again` feeds the same batch once more, to diagnose it."""
    began = time.perf_counter()
    for chunk in run.chunks:
        chunk.zero_grad_buffer()
    run.optimizer.zero_grad()
    size = batch_size(run.config, run.consumed)
    total = forward_backward(run, feed, size=size, forward_only=False)
    loss = float(total[0] / total[1])
    taken, norm = _update(run, loss, size, again)
    run.iteration += 1
    run.consumed += size
    if taken:
        run.scheduler.step(size)
    seconds = time.perf_counter() - began
    return logs.Step(
        iteration=run.iteration,
        consumed_samples=run.consumed,
        loss=loss,
        grad_norm=norm,
        lr=get_canonical_lr_for_logging(run.optimizer.param_groups) or 0.0,
        seconds=seconds,
        tokens_per_second=run.per_token_loss.positions / seconds,
        global_batch_size=size,
        loss_scale=float(run.optimizer.get_loss_scale()),
        skipped=int(not taken),
        nan=int(not taken and not math.isfinite(loss)),
    )


def _update(run: Run, loss: float, size: int, again: Callable[[], Feeds]) -> tuple[bool, float | None]:
    """Return (whether the weights were changed, the gradient norm if so): not at an fp16 overflow or against a guard."""
    overflow = run.optimizer.prepare_grads()
    norm = 0.0 if overflow else float(run.optimizer.get_grad_norm())
    rerun = partial(_rerun, run, again, size)
    # An overflow is the loss scale's business, but a loss is looked at unscaled.
    if overflow and math.isfinite(loss):
        return guard.overflowed(run, size=size, again=rerun), None
    if not guard.may_go_on(run, loss, norm, size=size, again=rerun):
        return False, None
    clip_and_step(run.optimizer, norm)
    return True, norm


def _rerun(run: Run, again: Callable[[], Feeds], size: int) -> None:
    forward_backward(run, again(), size=size, forward_only=True)


def forward_backward(run: Run, feed: Feeds, *, size: int, forward_only: bool) -> Float[Tensor, "sums"]:
    """Run megatron-core's schedule over `size` samples; return the sums of `_loss` over all of them, on every rank."""
    micro, replicas = run.config.micro_batch_size, parallel_state.get_data_parallel_world_size()
    run.per_token_loss.begin()
    parts = get_forward_backward_func()(
        forward_step_func=partial(_forward, run),
        data_iterator=feed,
        model=run.chunks,
        num_microbatches=size // (micro * replicas),
        seq_length=run.seq_length,
        micro_batch_size=micro,
        forward_only=forward_only,
    )
    # fp64 would be exact; fp32 sums over micro batches agree to about 1e-7
    total = torch.stack(parts).sum(0) if parts else torch.zeros(SUMS, device=torch.cuda.current_device())
    torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group())
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    torch.distributed.broadcast(total, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    return total


def _forward(run: Run, feed: Batches | None, model: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """Run one chunk's forward over one micro batch, in the form that megatron-core's schedules call."""
    batch = next(feed) if feed else {}
    positions, mask = batch.get("position_ids"), attention_mask(batch.get("documents"))
    with rope_at(unwrap(model), positions if run.config.reset_position_ids or run.config.packing else None):
        output = model(batch.get("tokens"), positions, mask, labels=batch.get("labels"))
    score = unwrap(model).compute_language_model_loss
    # called on the last stage, which has a batch, right after its forward
    return output, lambda losses: _loss(run, batch["loss_mask"], losses, score.right)


def _loss(
    run: Run, mask: Float[Tensor, "b s"], losses: Float[Tensor, "b s"], right: Bool[Tensor, "b s"] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum to differentiate (`per_token_loss` divides it), tokens for megatron-core, and sums for the log."""
    run.per_token_loss.add(mask)
    total, tokens = (losses * mask).sum(), mask.sum()
    seen = torch.zeros(SUMS - 2, device=mask.device) if right is None else counts(right, mask)
    return total, tokens.int(), torch.cat([torch.stack([total.detach(), tokens]), seen])
