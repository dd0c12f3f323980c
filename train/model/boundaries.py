"""Documents that share a row: attention is cut between them and rope begins anew in each."""

import contextlib
from collections.abc import Iterator
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor


def attention_mask(documents: Int[Tensor, "b s"] | None) -> Bool[Tensor, "b 1 s s"] | None:
    """Return megatron-core's mask (True hides), made on the device: each token sees its own document up to itself.

    None, for one document a row, leaves attention plainly causal.
    """
    if documents is None:
        return None
    same = documents[:, :, None] == documents[:, None, :]
    return ~same.tril()[:, None]


@contextlib.contextmanager
def rope_at(model: Any, positions: Int[Tensor, "b s"] | None, *, reach: int | None = None) -> Iterator[None]:
    """Use the angles of `positions` in a GPTModel's rope, which else counts from 0, within this context.

    No position may be as large as `reach`, which is the row's length if not given. Nothing happens where
    `positions` is None or the model has no rope.
    """
    rotary = getattr(model, "rotary_pos_emb", None)
    if positions is None or rotary is None:
        yield
        return
    counted = rotary.forward

    def forward(length: int, *args: Any, **options: Any) -> Float[Tensor, "s b 1 h"]:
        return counted(reach or length, *args, **options)[:, 0, 0][positions.t()][:, :, None]

    rotary.forward = forward
    try:
        yield
    finally:
        del rotary.forward
