"""A run from its start to its last step: model and data, steps, evaluation, checkpoints and what follows them."""

from mconv.train.loop.loop import train

__all__ = ["train"]
