"""Which rank of a failed run holds what it should not: each rank's live weights against the checkpoint's own tensors."""

from typing import Any

import torch

from mconv.convert.checkpoint import Checkpoint
from mconv.convert.sources.load import load_rank
from mconv.train.megatron.collectives import from_rank_0
from mconv.verify.digests import Report, tp_ranks
from mconv.verify.models import How, Megatron, Model, narrowed


def wrong(model: Model, checkpoint: Checkpoint, how: How, *, failed: bool) -> list[str]:
    """What rank 0 says of all ranks: names of the weights that differ from what mconv would have cut. Nothing if right.

    Every rank calls it; only a failure of rank 0's comparison makes them look.
    """
    if not isinstance(model, Megatron) or how.parallel.tp * how.parallel.pp == 1:
        return []
    if not from_rank_0(failed) or how.streamed:
        return []
    from mconv.train.megatron.imports import parallel_state

    rank = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_pipeline_model_parallel_rank()
    said: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(said, (rank, _off(model, checkpoint, how, *rank)))
    found = dict(one for one in said if one[1])
    return [f"tp rank {tp} of stage {pp} holds other weights than the checkpoint: {', '.join(names[:3])}"
            for (tp, pp), names in sorted(found.items())]  # fmt: skip


def _off(model: Megatron, checkpoint: Checkpoint, how: How, tp_rank: int, pp_rank: int) -> list[str]:
    from mconv.train.model import engine

    own = engine.parameters(model.model)
    wanted = {name: torch.empty_like(tensor, device="cpu", dtype=how.filling) for name, tensor in own.items()}
    load_rank(
        checkpoint.source, wanted, layout=how.parallel.layout(padded_vocab=model.padded), tp_rank=tp_rank, stage=pp_rank
    )  # fmt: skip
    narrowed(wanted, how.narrow)
    return [name for name, tensor in own.items() if not torch.equal(tensor.cpu(), wanted[name].to(tensor.dtype))]


def of_ranks(found: Report, checkpoint: Checkpoint, *, tp: int) -> list[str]:
    """Whose share of the cut tensors differs, where that is not everybody's."""
    out = []
    for difference in found.differences:
        whose = tp_ranks(difference, checkpoint.family, checkpoint.spec, tp=tp) if difference.how == "bits" else []
        if 0 < len(whose) < tp:
            named = " and ".join(map(str, whose))
            out.append(f"{difference.tensor} differs in the share of tp rank {named} of {tp} alone")
    return out
