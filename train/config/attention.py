"""Which code computes attention."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Attention: the kernel that computes attention."""

    attention_backend: Literal["auto", "sdpa", "cudnn", "transformer_engine"] = "auto"
    """Code that computes softmax(q k^T) v. sdpa: torch's scaled_dot_product_attention (flash attention on a GPU). cudnn:
    cuDNN's kernel within it. transformer_engine: Transformer Engine's DotProductAttention. auto: Transformer Engine where
    it is installed and fits, else sdpa."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section: none that a machine without Transformer Engine could know."""
        yield from ()
