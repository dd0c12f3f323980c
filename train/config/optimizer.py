"""What a step does to the weights, and at what learning rate."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Schedule: the learning rate over iterations (with train_iters) or samples (with train_samples)."""

    lr: float | None = None
    """Highest learning rate."""
    min_lr: float = 0.0
    """Lowest learning rate, at the end of the decay."""
    lr_decay_style: Literal["cosine", "linear", "constant", "inverse-square-root", "WSD"] = "cosine"
    """Shape of the decay after the warmup. WSD: constant until the last lr_wsd_decay_iters."""
    lr_decay_iters: int | None = None
    """Iterations until min_lr is reached, warmup included; train_iters if not given."""
    lr_decay_samples: int | None = None
    """Samples until min_lr is reached, warmup included; train_samples if not given."""
    lr_warmup_iters: int = 0
    """Iterations of linear warmup."""
    lr_warmup_samples: int = 0
    """Samples of linear warmup."""
    lr_warmup_fraction: float | None = None
    """Warmup as a fraction of the decay; use instead of lr_warmup_iters or lr_warmup_samples."""
    lr_warmup_init: float = 0.0
    """Learning rate at the start of the warmup."""
    lr_wsd_decay_style: Literal["exponential", "linear", "cosine", "minus_sqrt"] = "exponential"
    """Shape of the final decay of a WSD schedule."""
    lr_wsd_decay_iters: int | None = None
    """Iterations of the final decay of a WSD schedule."""
    lr_wsd_decay_samples: int | None = None
    """Samples of the final decay of a WSD schedule."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, "lr_decay_iters lr_decay_samples lr_wsd_decay_iters lr_wsd_decay_samples")
        yield from rules.not_negative(config, "lr_warmup_iters lr_warmup_samples min_lr lr_warmup_init")
        yield from rules.below_1(config, "lr_warmup_fraction")
        yield from rules.each(
            config, "lr", "finite, more than 0 and at least min_lr and lr_warmup_init",
            lambda lr: 0 < lr < math.inf and lr >= max(config.min_lr, config.lr_warmup_init),
        )  # fmt: skip
        if config.lr is None and not config.eval_only:
            yield "lr is not set: give the highest learning rate, such as 1e-5"
        yield from _units(config)
        yield from _spans(config)


def _units(config: Any) -> Iterator[str]:
    """Yield the spans of the schedule that are not counted in the unit of the run's length."""
    counted, other = ("iters", "samples") if config.train_samples is None else ("samples", "iters")
    for stem in ("lr_decay_", "lr_warmup_", "lr_wsd_decay_"):
        if getattr(config, stem + other):
            yield f"{stem}{other} is not for a run whose length is in train_{counted}; use {stem}{counted}"
    if config.lr_warmup_fraction is not None and (config.lr_warmup_iters or config.lr_warmup_samples):
        yield "lr_warmup_fraction replaces lr_warmup_iters and lr_warmup_samples; give one of them"
    if config.lr_warmup_init and not (config.lr_warmup_iters or config.lr_warmup_samples or config.lr_warmup_fraction):
        yield f"lr_warmup_init is {config.lr_warmup_init}, but there is no warmup"
    wsd = config.lr_wsd_decay_iters or config.lr_wsd_decay_samples
    if (config.lr_decay_style == "WSD") != bool(wsd):
        yield f"lr_wsd_decay_{counted} is for lr_decay_style WSD, which needs it; the style is {config.lr_decay_style}"


def _spans(config: Any) -> Iterator[str]:
    """Yield the spans that do not fit: the warmup and WSD's final decay must fit in the decay."""
    counted = "iters" if config.train_samples is None else "samples"
    whole = getattr(config, f"lr_decay_{counted}") or getattr(config, f"train_{counted}") or 0
    warmup, fall = (getattr(config, f"lr_{part}_{counted}") or 0 for part in ("warmup", "wsd_decay"))
    warmup = warmup or int((config.lr_warmup_fraction or 0) * whole)
    if warmup >= whole > 0:
        yield f"lr_warmup_{counted} {warmup} must be less than lr_decay_{counted}, or train_{counted}"
    elif warmup + fall > whole > 0:
        yield f"lr_warmup_{counted} {warmup} and lr_wsd_decay_{counted} {fall} do not fit in lr_decay_{counted} {whole}"


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
