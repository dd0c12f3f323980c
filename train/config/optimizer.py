"""What a step does to the weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Optimizer: Adam or SGD, weight decay and gradient clipping."""

    optimizer: Literal["adam", "sgd"] = "adam"
    """Optimizer. adam: AdamW, with decoupled weight decay. sgd: SGD with momentum, with weight decay added to the
    gradient."""
    weight_decay: float = 0.01
    """Weight decay of matrices, multiplied by the learning rate; norms and biases have none."""
    start_weight_decay: float | None = None
    """Weight decay of the first step, if weight_decay_incr_style is not constant."""
    end_weight_decay: float | None = None
    """Weight decay of the last step, if weight_decay_incr_style is not constant."""
    weight_decay_incr_style: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the weight decay's growth over the run."""
    adam_beta1: float = 0.9
    """Decay of Adam's first moment."""
    adam_beta2: float = 0.95
    """Decay of Adam's second moment."""
    adam_eps: float = 1e-8
    """Epsilon in Adam's denominator."""
    sgd_momentum: float = 0.9
    """Momentum of sgd."""
    clip_grad: float = 1.0
    """Largest norm of the gradient over all parameters; larger ones are scaled down to it. 0 does not clip."""

    padded_vocab_in_loss: bool = False
    """Include the padding columns of the vocabulary in the softmax of the loss, as Megatron-LM does. Otherwise they are
    left out."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.not_negative(config, "weight_decay start_weight_decay end_weight_decay adam_eps clip_grad")
        yield from rules.below_1(config, "adam_beta1 adam_beta2 sgd_momentum")
        ends = (config.start_weight_decay, config.end_weight_decay)
        grows = config.weight_decay_incr_style != "constant"
        if grows != (None not in ends) or (not grows and ends != (None, None)):
            yield (
                "start_weight_decay and end_weight_decay are both needed where weight_decay_incr_style is linear or "
                "cosine, and not used where it is constant"
            )
        elif grows and ends[0] > ends[1]:
            yield f"start_weight_decay {ends[0]} must not be more than end_weight_decay {ends[1]}"
        if config.optimizer == "sgd" and config.distributed_optimizer:
            yield "distributed_optimizer shares Adam's state only; with optimizer sgd leave it out"
