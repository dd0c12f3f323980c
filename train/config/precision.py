"""In what numbers a run computes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Precision: fp32, bf16 or fp16, and fp16's loss scale."""

    bf16: bool = False
    """Train in bfloat16 with fp32 main weights and gradients; in fp32 otherwise."""
    fp16: bool = False
    """Train in float16 with fp32 main weights and gradients, and a loss scale that keeps small gradients above zero."""
    loss_scale: float | None = None
    """Constant loss scale for fp16; adjusted during the run if not given."""
    initial_loss_scale: float = 2.0**32
    """First loss scale of fp16."""
    min_loss_scale: float = 1.0
    """Lowest loss scale of fp16."""
    loss_scale_window: int = 1000
    """Consecutive steps without overflow after which fp16's loss scale doubles."""
    hysteresis: int = 2
    """Number of overflows before fp16's loss scale is halved."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, "loss_scale_window hysteresis")
        yield from rules.positive(config, "loss_scale initial_loss_scale min_loss_scale")
        if config.bf16 and config.fp16:
            yield "bf16 and fp16 are two precisions; set one of them"
        if config.loss_scale is not None and not config.fp16:
            yield "loss_scale is for fp16; bf16 and fp32 need none"
        if config.min_loss_scale > config.initial_loss_scale:
            yield f"min_loss_scale {config.min_loss_scale} is more than initial_loss_scale {config.initial_loss_scale}"
