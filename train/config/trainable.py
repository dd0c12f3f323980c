"""Which weights a run changes: all, those that are not frozen, or a low-rank adapter."""

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
    """Return whether a word of `freeze` matches the parameter of that name."""
    if layers := LAYERS.match(word):
        number = re.match(r"decoder\.layers\.(\d+)\.", name)
        return number is not None and int(layers[1]) <= int(number[1]) <= int(layers[2] or layers[1])
    return fnmatch.fnmatchcase(name, PARTS.get(word, word))


@dataclass(frozen=True, kw_only=True)
class Lora:
    """LoRA: low-rank adapters that are trained instead of the model's weights."""

    lora_rank: int | None = None
    """Rank of the adapters. If given, only adapters are trained, and checkpoints hold only adapters."""
    lora_alpha: float | None = None
    """Scale of the adapters' output, which is multiplied by lora_alpha / lora_rank; the rank if not given, so by 1."""
    lora_dropout: float = 0.0
    """Dropout probability of the adapters' inputs in training."""
    lora_targets: list[str] | None = None
    """Linears that get an adapter, by their Hugging Face names (q_proj, v_proj, ...); "all-linear", every linear of each
    layer, if not given."""
    lora_load: str | None = None
    """PEFT adapter to start from; its rank, alpha and targets are used."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, "lora_rank")
        yield from rules.below_1(config, "lora_dropout")
        yield from rules.each(config, "lora_alpha", "more than 0", lambda alpha: 0 < alpha < float("inf"))
        yield from rules.each(config, "lora_targets", 'names of linears, or "all-linear"', bool)
        if config.freeze is not None and (config.lora_rank or config.lora_load):
            yield "freeze names weights of the model, and LoRA trains none of these; leave it out"
        if config.resume and (config.lora_rank or config.lora_load):
            yield "resume continues a run of the whole model with its optimizer, and LoRA begins anew; leave resume out"
        asked = {"lora_alpha": None, "lora_dropout": 0.0, "lora_targets": None}
        if config.lora_rank is None and config.lora_load is None:
            given = [name for name, without in asked.items() if getattr(config, name) != without]
            yield from (f"{name} needs lora_rank, or lora_load" for name in given)
