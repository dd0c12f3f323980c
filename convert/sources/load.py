"""Fill one rank's live parameters from any source: what training and verifying need of conversion."""

import torch

from mconv.convert.dialects import mcore, spell
from mconv.convert.sources.read import assemble
from mconv.convert.sources.source import Source
from mconv.convert.spelling.table import Stored
from mconv.errors import FormatError
from mconv.shard.layout import Layout


def load_rank(
    source: Source,
    params: dict[str, torch.Tensor],
    *,
    layout: Layout,
    tp_rank: int,
    stage: int,
    chunk: int = 0,
    partial: bool = False,
) -> None:
    """Fill one rank's live parameters from any source. Names as in an `mp_rank` file; cast to their dtypes.

    The rank is the one at `tp_rank` and `stage` of `layout`; of its model chunks, where it has several, `chunk` is this.
    With `partial` they may be some of its parameters. Raises FormatError if one is in no row of the table, or a row has
    none.
    """
    done = set()
    for place, names, logical in spell.rank_tensors(mcore.DIALECT, source.family, source.spec, layout):
        if (place.stage, place.chunk) != (stage, chunk):
            continue
        name = next((n for n in names if n in params), names[0])
        if name not in params and partial:
            continue
        if name not in params:
            raise FormatError(f"the model has no parameter {name!r} for {logical}")
        piece = spell.rank_piece(mcore.DIALECT, source.family, source.spec, layout, logical, tp_rank)
        stored = Stored(name, logical, piece)
        with torch.no_grad():
            params[name].copy_(assemble(source, stored, dtype=params[name].dtype).view(params[name].shape))
        done.add(name)
    if left := sorted(set(params) - done):
        raise FormatError(f"no row of the {source.family.name} table fills the model's parameters {left[:5]}")
