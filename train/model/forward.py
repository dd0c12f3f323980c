"""Logits of a model that is cut in any way, on global rank 0."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mconv.train.megatron.imports import (
    get_forward_backward_func,
    parallel_state,
    quiet,
)
from mconv.train.megatron.parallel import Parallel
from mconv.train.model.boundaries import rope_at
from mconv.train.model.engine import unwrap

SENT = 64
"""Positions whose scores one message holds."""


@torch.no_grad()
@quiet()
def logits(
    model: torch.nn.Module,
    tokens: Int[Tensor, "b s"],
    *,
    parallel: Parallel,
    positions: Int[Tensor, "b s"] | None = None,
) -> Float[Tensor, "b s padded_vocab"] | None:
    """Return scores of every position over the padded vocabulary, fp32, on global rank 0; None on all other ranks.

    Every rank calls it with the same `tokens` (on any device). Forward only, through megatron-core's own pipeline
    schedules; with sequence parallelism the sequence is padded to a multiple of tp and cut again. `positions` rise along
    each row; 0, 1, 2, ... if not given.
    """
    length = tokens.shape[1]
    spare = -length % parallel.tp if parallel.sequence_parallel else 0
    padded = torch.nn.functional.pad(tokens, (0, spare)).to(torch.cuda.current_device())
    training = model.training
    model.eval()
    at = None if positions is None else torch.nn.functional.pad(positions, (0, spare)).to(torch.cuda.current_device())
    with rope_at(unwrap(model), at, reach=None if at is None else int(at.max()) + 1):
        outputs = get_forward_backward_func()(
            forward_step_func=_forward,
            data_iterator=iter([(padded, at)]),
            model=[model],
            num_microbatches=1,
            seq_length=padded.shape[1],
            micro_batch_size=padded.shape[0],
            forward_only=True,
            collect_non_loss_data=True,
        )
    model.train(training)
    scores = _on_rank_0(outputs[0].float() if outputs else None, (*padded.shape, unwrap(model).vocab_size))
    return None if scores is None else scores[:, :length]


def _forward(
    batches: Iterator[tuple[Int[Tensor, "b s"], Int[Tensor, "b s"] | None]], model: torch.nn.Module
) -> tuple[Tensor, Any]:
    """Run one stage's forward, in the form that megatron-core's schedules call."""
    tokens, positions = next(batches)
    if positions is None:
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    return model(tokens, positions, None), lambda output, non_loss_data: output


def _on_rank_0(
    cut: Float[Tensor, "b s cut_vocab"] | None, shape: tuple[int, int, int]
) -> Float[Tensor, "b s padded_vocab"] | None:
    """Hand the shares that the last stage's ranks have of the vocabulary to global rank 0, and to no other rank."""
    ranks = torch.distributed.get_process_group_ranks(parallel_state.get_model_parallel_group())
    rank, tp = torch.distributed.get_rank(), parallel_state.get_tensor_model_parallel_world_size()
    if ranks[0] != 0:  # a replica of the model that rank 0 has a part of
        return None
    if len(ranks) == 1:
        return cut
    last = ranks[-tp:]  # tensor-parallel ranks count fastest, stages slowest
    if rank:
        for part in cut.split(SENT, dim=1) if cut is not None else ():
            torch.distributed.send(part.contiguous(), dst=0)
        return None
    scores = torch.empty(shape, dtype=torch.float32, device=torch.cuda.current_device())
    shares = scores.split(shape[2] // tp, dim=2)
    for at in range(0, shape[1], SENT):
        for source, share in zip(last, shares, strict=True):
            part = share[:, at : at + SENT]
            part.copy_(_received(part, source) if source or cut is None else cut[:, at : at + SENT])
    return scores


def _received(like: Tensor, source: int) -> Tensor:
    """Return what a rank sends."""
    found = torch.empty_like(like, memory_format=torch.contiguous_format)
    torch.distributed.recv(found, src=source)
    return found
