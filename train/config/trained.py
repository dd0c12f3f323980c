"""Which weights a run changes, and what it drops out while it does."""

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules

PARTS = {
    "embedding": "embedding.*",
    "output": "output_layer.*",
    "norms": "*norm.*",
    "biases": "*.bias",
    "attention": "*.self_attention.*",
    "mlp": "*.mlp.*",
}
"""Words for what people freeze, as patterns of megatron-core's names, layers counted from 0 through the whole model."""
LAYERS = re.compile(r"layers\.(\d+)(?:-(\d+))?$")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Trained weights: frozen weights, and dropout."""

    freeze: list[str] | None = None
    """Weights that are not trained: embedding, output, norms, biases, attention, mlp, layers.3, layers.0-7, or patterns
    of megatron-core names such as decoder.layers.*.linear_qkv.weight."""
    hidden_dropout: float = 0.0
    """Dropout probability of the embedding's output and of each layer's attention and MLP outputs."""
    attention_dropout: float = 0.0
    """Dropout probability of the attention weights."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.below_1(config, "hidden_dropout attention_dropout")
        yield from rules.each(
            config, "freeze", "names of weights, none of them empty", lambda names: names and all(names)
        )


def means(word: str, name: str) -> bool:
    """Whether a word of `freeze` means the parameter of that name."""
    if layers := LAYERS.match(word):
        number = re.match(r"decoder\.layers\.(\d+)\.", name)
        return number is not None and int(layers[1]) <= int(number[1]) <= int(layers[2] or layers[1])
    return fnmatch.fnmatchcase(name, PARTS.get(word, word))
