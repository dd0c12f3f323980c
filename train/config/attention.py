"""Which code computes attention."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Attention: which kernel."""

    attention_backend: Literal["auto", "sdpa", "cudnn", "transformer_engine"] = "auto"
    """What computes softmax(q k^T) v: torch's scaled_dot_product_attention (flash on a GPU), the same with cuDNN's kernel
    before others, Transformer Engine's DotProductAttention, or the last where it is installed and can do it."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Broken rules of this section: none that a machine without Transformer Engine could know."""
        yield from ()
