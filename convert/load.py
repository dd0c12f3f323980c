"""Fill one rank's live parameters from any checkpoint on disk: what training and verifying need of conversion."""

import torch

from mconv.convert import spell
from mconv.convert.checkpoint import Checkpoint
from mconv.convert.dialects import mcore
from mconv.convert.opening import open_checkpoint
from mconv.convert.source import Source, assemble
from mconv.convert.table import Stored
from mconv.errors import FormatError
from mconv.shard.layout import Layout


def load_rank(
    checkpoint: Checkpoint,
    params: dict[str, torch.Tensor],
    *,
    tp: int,
    pp: int,
    tp_rank: int,
    pp_rank: int,
    padded_vocab_size: int,
    partial: bool = False,
) -> None:
    """Fill one rank's live parameters from any checkpoint. Names as in an `mp_rank` file; cast to their dtypes.

    With `partial` they may be some of the rank's. Raises FormatError if a parameter is in no row of the table, or a row
    has no parameter.
    """
    layout = Layout(tp=tp, pp=pp, padded_vocab=padded_vocab_size)
    source, done = Source.of(checkpoint), set()
    for place, names, logical in spell.rank_tensors(mcore.DIALECT, checkpoint.family, checkpoint.spec, layout):
        if place.stage != pp_rank:
            continue
        name = next((n for n in names if n in params), names[0])
        if name not in params and partial:
            continue
        if name not in params:
            raise FormatError(f"the model has no parameter {name!r} for {logical}")
        piece = spell.rank_piece(mcore.DIALECT, checkpoint.family, checkpoint.spec, layout, logical, tp_rank)
        stored = Stored(name, logical, piece)
        with torch.no_grad():
            params[name].copy_(assemble(source, stored, dtype=params[name].dtype).view(params[name].shape))
        done.add(name)
    if left := sorted(set(params) - done):
        raise FormatError(f"no row of the {checkpoint.family.name} table fills the model's parameters {left[:5]}")


__all__ = ["Checkpoint", "load_rank", "open_checkpoint"]
