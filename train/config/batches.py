"""How many samples each step takes, and how many steps a run has: computed here, for whoever asks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RunLength:
    """A whole run, resumed parts included."""

    iterations: int
    """Optimizer steps."""
    samples: int
    """Samples that are asked of the data, which the last step may not quite use up."""


def size_at(consumed: int, *, last: int, ramp: Sequence[int] | None) -> int:
    """Return the samples of the step that begins at sample `consumed`, where batches grow to `last`.

    `ramp`: first size, increment, and the samples until `last` is reached; None where every step takes `last`.
    """
    if not ramp or consumed > ramp[2]:
        return last
    first, increment, samples = ramp
    # last=8 ramp=2 2 24: span 8; a step that begins before sample 8 takes 2, then 4 up to 16, 6 up to 24, then 8.
    span = samples / ((last - first) // increment)  # divided as megatron-core does, or some steps would differ by one
    return first + int(consumed / span) * increment


def batch_size(config: Any, consumed: int) -> int:
    """Return the samples of the step of a run that begins at sample `consumed`."""
    return size_at(consumed, last=config.global_batch_size, ramp=config.rampup_batch_size)


def length(config: Any) -> RunLength:
    """Return the steps and samples of a run; a last batch that is not full is left out, as Megatron-LM does."""
    if config.train_samples is None:
        iterations = config.train_iters or 0
        return RunLength(iterations, iterations * config.global_batch_size)
    steps = consumed = 0
    growing = min(config.rampup_batch_size[2], config.train_samples) if config.rampup_batch_size else -1
    while consumed <= growing:
        consumed += batch_size(config, consumed)
        steps += 1
    left = max(0, config.train_samples - consumed)
    return RunLength(steps + left // config.global_batch_size, max(config.train_samples, consumed))
