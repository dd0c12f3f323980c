"""The two kinds of model that are compared, each run by its own program: transformers', and megatron-core's GPTModel.

Both give the logits of a probe chunk by chunk, and on the way a sample of each layer's hidden states. Both can run from
disk, one layer in memory at a time (`streamed`): the forward is theirs all the same, the weights come and go under it.
"""

from mconv.convert.checkpoint import Checkpoint
from mconv.verify.models.common import (
    How,
    Model,
    Repair,
    Scores,
    first,
    hooked,
    narrowed,
    rounded,
    sampled,
    turned,
)
from mconv.verify.models.hugging_face import HuggingFace
from mconv.verify.models.megatron import Megatron

__all__ = [
    "How",
    "HuggingFace",
    "Megatron",
    "Model",
    "Repair",
    "Scores",
    "first",
    "hooked",
    "model_of",
    "narrowed",
    "rounded",
    "sampled",
    "turned",
]


def model_of(checkpoint: Checkpoint, how: How) -> Model:
    """The model that computes what a checkpoint holds."""
    if checkpoint.format == "hf":
        return HuggingFace(checkpoint, how)
    return Megatron(checkpoint, how)
