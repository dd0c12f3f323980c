"""Check before anything is built that the layout can share every size of a run; describe the layout."""

import torch

from mconv.errors import ConfigError, refuse
from mconv.spec import ModelSpec
from mconv.train.config import TrainConfig
from mconv.train.config.length import unshared
from mconv.train.config.monitoring import beyond
from mconv.train.megatron.parallel import Parallel
from mconv.train.model import recompute
from mconv.train.model.checks import problems


def check(config: TrainConfig, parallel: Parallel, spec: ModelSpec, *, padded_vocab_size: int, seq_length: int) -> None:
    """Refuse, all at once, what this world cannot share of the model and its batches. Raises ConfigError."""
    bad = problems(spec, padded_vocab_size=padded_vocab_size, parallel=parallel)
    world = torch.distributed.get_world_size()
    bad += unshared(config, replicas=parallel.data_parallel(world))
    bad += beyond(config, world=world)
    bad += recompute.problems(config, parallel, spec)
    if parallel.sequence_parallel and seq_length % parallel.tp:
        bad.append(f"seq_length {seq_length} is not a multiple of tp {parallel.tp}; sequence_parallel cuts it")
    refuse(bad, doing="sharing the run among ranks", kind=ConfigError)


def schedule(parallel: Parallel) -> dict[str, bool]:
    """Return what megatron-core's schedules may do with a stage's outputs once they are sent.

    Interleaved, they free a tensor while it is still being sent; NCCL has made sure of its memory, gloo has not.
    """
    return {"deallocate_pipeline_outputs": parallel.vpp == 1 or torch.cuda.is_available()}


def described(parallel: Parallel, spec: ModelSpec, *, world: int) -> str:
    """Return a layout for people, with the layers of each stage where these are not obvious."""
    sizes = f"tp {parallel.tp} x pp {parallel.pp} x dp {parallel.data_parallel(world)}"
    stages = parallel.stages(spec.num_layers)
    if len({len(layers) for layers in stages.values()}) == parallel.vpp == 1:
        return sizes
    shown = ", ".join(
        "+".join(str(len(stages[stage, chunk])) for chunk in range(parallel.vpp)) for stage in range(parallel.pp)
    )
    return f"{sizes}, layers of each stage {shown}"
