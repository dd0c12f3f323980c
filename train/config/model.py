"""What a run begins with: a checkpoint to load, or a model made from nothing."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Start:
    """Start: the checkpoint to load, its vocabulary, and the seed."""

    load: str | None = None
    """Checkpoint to take the weights from: a Megatron checkpoint of any layout, or a Hugging Face folder. Not used with
    init random."""
    make_vocab_size_divisible_by: int = 128
    """Pad the vocabulary to a multiple of this times tp, unless the checkpoint is already padded."""
    vocab_size: int | None = None
    """True vocabulary size, for checkpoints that do not record it and for models from scratch."""
    ignore_arg: list[str] | None = None
    """Args of the checkpoint in load that no table claims and that may be ignored."""
    ignore_config_key: list[str] | None = None
    """Keys of the config.json in load that no table claims and that may be ignored."""
    seed: int = 1234
    """Seed of the data order, of random weights and of dropout."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, "make_vocab_size_divisible_by vocab_size")
        yield from rules.each(config, "seed", "0 or more and less than 2**32", lambda seed: 0 <= seed < 1 << 32)


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
    """Model from scratch: architecture and random weights (--init random), from a preset or a config.json."""

    init: Literal["checkpoint", "random"] = "checkpoint"
    """Source of the weights. checkpoint: those of load. random: drawn for the model that preset or model names, the same
    at every layout."""
    preset: str | None = None
    """With init random: name of a model; `mconv plan --presets` lists them."""
    model: str | None = None
    """With init random: a Hugging Face config.json, or a folder with one. A tokenizer in that folder is copied into the
    checkpoints."""
    init_method_std: float | None = None
    """Standard deviation of random weights; the preset's if not given, else 0.02. Divided by sqrt(2 * num_layers) in the
    output projections of attention and MLP; norms start at 1, biases at 0."""
    num_layers: int | None = None
    """Override the preset's number of layers."""
    hidden_size: int | None = None
    """Override the preset's hidden size. The MLP's width follows if it was 4x the hidden size, and so does the head
    dimension."""
    ffn_hidden_size: int | None = None
    """Override the preset's width of the MLP."""
    num_attention_heads: int | None = None
    """Override the preset's number of query heads."""
    num_query_groups: int | None = None
    """Override the preset's number of key and value heads. If the preset has one for each query head, it follows
    num_attention_heads."""
    kv_channels: int | None = None
    """Override the preset's head dimension. If the preset's is hidden_size / num_attention_heads, it follows these."""
    max_position_embeddings: int | None = None
    """Override the preset's number of positions, the longest sample that the model takes."""
    norm_epsilon: float | None = None
    """Override the preset's epsilon in the norms' denominator."""
    rotary_base: float | None = None
    """Override the preset's base of the rotary embedding (rope_theta)."""
    position_embedding_type: str | None = None
    """Override the preset's position embedding: rope or learned_absolute."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, " ".join(SIZES))
        yield from rules.each(config, "init_method_std rotary_base", "positive", lambda value: 0 < value < math.inf)
        yield from rules.below_1(config, "norm_epsilon")
        yield from rules.each(config, "position_embedding_type", " or ".join(POSITIONS), POSITIONS.__contains__)
        yield from _from_scratch(config) if config.init == "random" else _from_a_checkpoint(config)


def _from_scratch(config: Any) -> Iterator[str]:
    """Yield what contradicts random weights."""
    if (config.preset is None) == (config.model is None):
        yield "init random needs the model to train: give preset (a name) or model (a config.json), one of them"
    if config.load is not None:
        yield f"load is {config.load!r}, but init random draws the weights and loads none; leave one of them out"
    if config.verify_first:
        yield "verify_first verifies load, and a run with init random has no load; leave verify_first out"


def _from_a_checkpoint(config: Any) -> Iterator[str]:
    """Yield what needs random weights."""
    if config.load is None:
        yield "load is not set: give load a Megatron checkpoint or a Hugging Face folder, or init random and a preset"
    said = [name for name in ("preset", "model", "init_method_std", *CHANGES) if getattr(config, name) is not None]
    if said:
        yield f"{', '.join(said)}: allowed only with init random; a checkpoint has its own architecture"
