"""Which model a run trains, where it is made from nothing: a preset or a config.json, and what differs from it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mconv.train.config import rules

SIZES = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
    "max_position_embeddings",
)  # fmt: skip
CHANGES = (*SIZES, "norm_epsilon", "rotary_base", "position_embedding_type")
"""Fields that say how the model differs from `preset` or `model`."""
POSITIONS = {"rope": "rope", "learned_absolute": "learned"}
"""Megatron's word for what tells positions apart, and the spec's."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model from scratch: what it is, and how its weights are drawn."""

    init: Literal["checkpoint", "random"] = "checkpoint"
    """Weights from `load`, or drawn at random for a model that `preset` or `model` names: the same at every layout."""
    preset: str | None = None
    """With `init` random: a model by name; `mconv plan --presets` lists them."""
    model: str | None = None
    """With `init` random: a config.json of Hugging Face, or a folder with it (and a tokenizer, which goes along)."""
    init_method_std: float | None = None
    """Standard deviation of random weights; the preset's if not given, else 0.02. Attention's and the MLP's last linear
    have it divided by sqrt(2 * num_layers); norms begin at 1, biases at 0."""
    num_layers: int | None = None
    """Layers, where they are not to be the preset's."""
    hidden_size: int | None = None
    """Width of the hidden states, likewise; an MLP that is four times as wide, and heads, follow it."""
    ffn_hidden_size: int | None = None
    """Width of the MLP, likewise."""
    num_attention_heads: int | None = None
    """Query heads, likewise."""
    num_query_groups: int | None = None
    """Key and value heads, likewise; as many as query heads where the preset has so."""
    kv_channels: int | None = None
    """Width of one head, likewise; hidden_size / num_attention_heads where the preset has so."""
    max_position_embeddings: int | None = None
    """Positions that the model is made for, likewise."""
    norm_epsilon: float | None = None
    """Term in the norms' denominator, likewise."""
    rotary_base: float | None = None
    """Base of rotary embedding, likewise."""
    position_embedding_type: str | None = None
    """What tells positions apart, likewise: rope or learned_absolute."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Broken rules of this section."""
        yield from rules.at_least_1(config, " ".join(SIZES))
        yield from rules.each(config, "init_method_std rotary_base", "positive", lambda value: 0 < value < math.inf)
        yield from rules.below_1(config, "norm_epsilon")
        yield from rules.each(config, "position_embedding_type", " or ".join(POSITIONS), POSITIONS.__contains__)
        yield from _from_scratch(config) if config.init == "random" else _from_a_checkpoint(config)


def _from_scratch(config: Any) -> Iterator[str]:
    """What does not go with random weights."""
    if (config.preset is None) == (config.model is None):
        yield "init random needs one of preset, a name, and model, a config.json: which model is it to be?"
    if config.load is not None:
        yield f"load is {config.load!r}, but init random takes weights from nowhere: leave one of them out"
    if config.verify_first:
        yield "verify_first judges load, which a run with init random has not"


def _from_a_checkpoint(config: Any) -> Iterator[str]:
    """What only goes with random weights."""
    if config.load is None:
        yield "load is not set: a Megatron checkpoint or a Hugging Face folder; or give init random and a preset"
    said = [name for name in ("preset", "model", "init_method_std", *CHANGES) if getattr(config, name) is not None]
    if said:
        yield f"{', '.join(said)}: for init random; a checkpoint knows its own model"
