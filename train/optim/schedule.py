"""The learning rate and the weight decay: megatron-core's scheduler, counting samples as Megatron-LM does."""

from typing import Any

from mconv.train.config import TrainConfig
from mconv.train.megatron.imports import OptimizerParamScheduler, quiet


@quiet()
def scheduler(optimizer: Any, config: TrainConfig, *, scheduled: int = 0) -> OptimizerParamScheduler:
    """Return a scheduler after `scheduled` samples, those of skipped steps not counted.

    The configuration rules, not what a checkpoint remembers of another one.
    """
    decay = _samples(config, "lr_decay") or _whole(config)
    warmup = _samples(config, "lr_warmup")
    start, end = config.start_weight_decay, config.end_weight_decay
    made = OptimizerParamScheduler(
        optimizer,
        init_lr=config.lr_warmup_init,
        max_lr=config.lr,
        min_lr=config.min_lr,
        lr_warmup_steps=warmup if config.lr_warmup_fraction is None else config.lr_warmup_fraction * decay,
        lr_decay_steps=decay,
        lr_decay_style=config.lr_decay_style,
        start_wd=config.weight_decay if start is None else start,
        end_wd=config.weight_decay if end is None else end,
        wd_incr_steps=_whole(config),
        wd_incr_style=config.weight_decay_incr_style,
        wsd_decay_steps=_samples(config, "lr_wsd_decay") or None,
        lr_wsd_decay_style=config.lr_wsd_decay_style,
    )
    made.step(scheduled)
    return made


def _samples(config: TrainConfig, what: str) -> int:
    """Return a span of the schedule in samples, from the field in iterations or samples; 0 if neither is set."""
    iterations, samples = getattr(config, f"{what}_iters"), getattr(config, f"{what}_samples")
    return int(samples or (iterations or 0) * config.global_batch_size)


def _whole(config: TrainConfig) -> int:
    return _samples(config, "train")
