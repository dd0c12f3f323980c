"""What a step does to the weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizer and the precision."""

    weight_decay: float = 0.01
    """Decoupled weight decay (AdamW) of matrices; norms and biases have none."""
    adam_beta1: float = 0.9
    """Decay of Adam's first moment."""
    adam_beta2: float = 0.95
    """Decay of Adam's second moment."""
    adam_eps: float = 1e-8
    """Term in Adam's denominator."""
    clip_grad: float = 1.0
    """Largest gradient norm, over all parameters; 0 does not clip."""
    bf16: bool = False
    """Train in bfloat16 with fp32 main weights and gradients; in fp32 otherwise."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Broken rules of this section."""
        yield from rules.not_negative(config, "weight_decay adam_eps clip_grad")
        yield from rules.below_1(config, "adam_beta1 adam_beta2")
