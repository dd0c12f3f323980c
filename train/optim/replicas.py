"""Data parallelism: megatron-core's wrapper around each model chunk."""

from collections.abc import Callable
from typing import Any

from mconv.train.config import TrainConfig
from mconv.train.megatron.imports import DistributedDataParallel, DistributedDataParallelConfig


def replicated(models: list[Any], config: TrainConfig, *, finalize: Callable[..., None]) -> list[Any]:
    """Wrap each of a rank's chunks in megatron-core's DDP: gradients in fp32, added up over replicas.

    `finalize` is called with all of them when all micro batches have gone backward. The schedules look for what belongs
    to all chunks in the config of the first.
    """
    wrapped = [
        DistributedDataParallel(model.config, _options(config), model, disable_bucketing=number > 0)
        for number, model in enumerate(models)
    ]
    first = models[0].config
    first.finalize_model_grads_func = finalize
    first.no_sync_func = [chunk.no_sync for chunk in wrapped] if len(wrapped) > 1 else wrapped[0].no_sync
    return wrapped


def _options(config: TrainConfig) -> DistributedDataParallelConfig:
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=config.distributed_optimizer,
        overlap_grad_reduce=config.overlap_grad_reduce,
        overlap_param_gather=config.overlap_param_gather,
    )


def gathered(chunks: list[Any]) -> None:
    """Make every replica's weights those of the last step.

    Under `overlap_param_gather` each has stepped its own share, and gets the others' in the next forward pass only.
    """
    for chunk in chunks:
        if chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)
