"""Which weights a run changes, and what it drops out while it does."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Frozen weights and dropout."""

    freeze: list[str] | None = None
    """Weights that stay as they are: embedding, output, norms, biases, attention, mlp, layers.3, layers.0-7, or patterns
    of megatron-core's names such as decoder.layers.*.linear_qkv.weight."""
    hidden_dropout: float = 0.0
    """Share of the embedding's and of each layer's outputs that a step leaves out."""
    attention_dropout: float = 0.0
    """Share of the attention weights that a step leaves out."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Broken rules of this section."""
        yield from rules.below_1(config, "hidden_dropout attention_dropout")
        yield from rules.each(
            config, "freeze", "names of weights, none of them empty", lambda names: names and all(names)
        )
