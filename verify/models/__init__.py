"""The two kinds of model that are compared, each run by its own program: transformers', and megatron-core's GPTModel.

Both give the logits of a probe chunk by chunk, and a sample of each layer's hidden states. Both can be streamed from
disk, one layer in memory at a time: the program's own forward runs, and weights are loaded and released under it.
"""

from mconv.convert.checkpoint.model import Checkpoint
from mconv.verify.models.common import Model, Repair, RunOptions, Scores
from mconv.verify.models.hugging_face import HuggingFace
from mconv.verify.models.megatron import Megatron

__all__ = ["HuggingFace", "Megatron", "Model", "Repair", "RunOptions", "Scores", "model_of"]


def model_of(checkpoint: Checkpoint, options: RunOptions) -> Model:
    """Return the model that computes what a checkpoint holds."""
    if checkpoint.format == "hf":
        return HuggingFace(checkpoint, options)
    return Megatron(checkpoint, options)
