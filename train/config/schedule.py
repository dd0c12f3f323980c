"""How long a run is, in what batches, and at what learning rate."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Batches, steps and the learning rate."""

    micro_batch_size: int = 1
    """Samples that pass through the model together."""
    global_batch_size: int = 8
    """Samples in one optimizer step, over all micro batches and replicas."""
    train_iters: int
    """Optimizer steps of the whole run, resumed parts included."""
    lr: float
    """Highest learning rate."""
    min_lr: float = 0.0
    """Lowest learning rate, at the end of the decay."""
    lr_decay_style: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warmup."""
    lr_decay_iters: int | None = None
    """Iterations until `min_lr` is reached, warmup included; `train_iters` if not given."""
    lr_warmup_iters: int = 0
    """Iterations in which the learning rate rises from 0, in a line."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Broken rules of this section."""
        yield from rules.at_least_1(config, "micro_batch_size global_batch_size train_iters lr_decay_iters")
        yield from rules.not_negative(config, "lr_warmup_iters min_lr")
        yield from rules.each(
            config, "lr", "finite, more than 0 and at least min_lr",
            lambda lr: 0 < lr < math.inf and lr >= config.min_lr,
        )  # fmt: skip
        if config.lr_warmup_iters >= (config.lr_decay_iters or config.train_iters) > 0:
            yield f"lr_warmup_iters {config.lr_warmup_iters} must be less than lr_decay_iters, or train_iters"
