"""The learning rate: megatron-core's scheduler, counting samples as Megatron-LM does."""

from typing import Any

from mconv.train.config import TrainConfig
from mconv.train.mcore import OptimizerParamScheduler


def scheduler(optimizer: Any, config: TrainConfig, *, consumed: int = 0) -> OptimizerParamScheduler:
    """A scheduler at sample `consumed`. The configuration rules, not what a checkpoint remembers of another one."""
    samples = config.global_batch_size
    made = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.lr,
        min_lr=config.min_lr,
        lr_warmup_steps=config.lr_warmup_iters * samples,
        lr_decay_steps=(config.lr_decay_iters or config.train_iters) * samples,
        lr_decay_style=config.lr_decay_style,
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=config.train_iters * samples,
        wd_incr_style="constant",
    )
    made.step(consumed)
    return made
