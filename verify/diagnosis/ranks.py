"""Ranks of a failed run that hold wrong weights: each rank's live weights against the checkpoint's own tensors."""

from typing import Any

import torch

from mconv.convert.checkpoint.model import Checkpoint
from mconv.convert.sources.load import load_rank
from mconv.train.megatron.collectives import from_rank_0
from mconv.verify.digests import Report, tp_ranks
from mconv.verify.models import Megatron, Model, RunOptions
from mconv.verify.models.common import round_in_place


def wrong(model: Model, checkpoint: Checkpoint, options: RunOptions, *, failed: bool) -> list[str]:
    """Return a sentence for each rank whose weights are not those that mconv would cut, on rank 0.

    Every rank calls it; they compare weights only if rank 0's comparison failed.
    """
    if not isinstance(model, Megatron) or options.parallel.tp * options.parallel.pp == 1:
        return []
    if not from_rank_0(failed) or options.streamed:
        return []
    from mconv.train.megatron.imports import parallel_state

    rank = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_pipeline_model_parallel_rank()
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, (rank, _off(model, checkpoint, options, *rank)))
    found = dict(one for one in gathered if one[1])
    return [f"tp rank {tp} of stage {pp} holds other weights than the checkpoint: {', '.join(names[:3])}"
            for (tp, pp), names in sorted(found.items())]  # fmt: skip


def _off(model: Megatron, checkpoint: Checkpoint, options: RunOptions, tp_rank: int, pp_rank: int) -> list[str]:
    from mconv.train.model import engine

    own = engine.parameters(model.model)
    wanted = {name: torch.empty_like(tensor, device="cpu", dtype=options.load_dtype) for name, tensor in own.items()}
    load_rank(
        checkpoint.source, wanted, layout=options.parallel.layout(padded_vocab=model.padded),
        tp_rank=tp_rank, stage=pp_rank,
    )  # fmt: skip
    round_in_place(wanted, options.narrow)
    return [name for name, tensor in own.items() if not torch.equal(tensor.cpu(), wanted[name].to(tensor.dtype))]


def of_ranks(found: Report, checkpoint: Checkpoint, *, tp: int) -> list[str]:
    """Return a line for each cut tensor that differs in the shares of some ranks only."""
    out = []
    for difference in found.differences:
        whose = tp_ranks(difference, checkpoint.family, checkpoint.spec, tp=tp) if difference.how == "bits" else []
        if 0 < len(whose) < tp:
            named = " and ".join(map(str, whose))
            out.append(f"{difference.tensor} differs only in the share of tp rank {named} of {tp}")
    return out
