"""How a run is spread over ranks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.shard.stages import Uneven
from mconv.train.config import rules

NAMED = "decoder_first_pipeline_num_layers decoder_last_pipeline_num_layers"
COUNTED = "account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split"


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """Parallelism: tensor, pipeline and data parallel ranks."""

    tp: int = 1
    """Tensor parallel size: ranks that share each matrix."""
    pp: int = 1
    """Pipeline parallel size: stages that share the layers."""
    vpp: int = 1
    """Model chunks on each pipeline stage (interleaved schedule); 1 is not interleaved. Needs pp > 1."""
    decoder_first_pipeline_num_layers: int | None = None
    """Layers of the first pipeline stage, over all its chunks; the other stages share the rest evenly."""
    decoder_last_pipeline_num_layers: int | None = None
    """Layers of the last pipeline stage, over all its chunks; the other stages share the rest evenly."""
    account_for_embedding_in_pipeline_split: bool = False
    """Count the embedding as one layer of the first stage, which then has one layer less."""
    account_for_loss_in_pipeline_split: bool = False
    """Count the output layer and the loss as one layer of the last stage, which then has one layer less."""
    sequence_parallel: bool = False
    """Split norms, dropout and residuals along the sequence over the tensor-parallel ranks. Needs tp > 1."""
    nproc_per_node: int | None = None
    """Ranks to start on this machine; tp * pp if not given. A multiple of tp * pp is data parallel. Not used under
    torchrun."""
    distributed_optimizer: bool = False
    """Divide the optimizer's state among the data-parallel replicas."""
    overlap_grad_reduce: bool = False
    """Reduce gradients over the replicas while the backward pass is still running."""
    overlap_param_gather: bool = False
    """Gather updated weights from the replicas while the next forward pass is already running. Needs
    distributed_optimizer and overlap_grad_reduce."""
    manual_gc_interval: int = 0
    """Iterations between collections of Python's garbage, on all ranks at the same steps, so that none waits for another;
    0 leaves it to Python."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, f"tp pp vpp nproc_per_node {NAMED}")
        yield from rules.not_negative(config, "manual_gc_interval")
        yield from _stages(config)
        if config.sequence_parallel and config.tp == 1:
            yield "sequence_parallel shares positions among the tensor-parallel ranks; it needs tp > 1"
        if config.overlap_param_gather and not (config.distributed_optimizer and config.overlap_grad_reduce):
            yield "overlap_param_gather needs distributed_optimizer and overlap_grad_reduce"


def _stages(config: Any) -> Iterator[str]:
    """Yield the broken rules of the stages, as far as they do not depend on the model."""
    named, counted = ([name for name in names.split() if getattr(config, name)] for names in (NAMED, COUNTED))
    if config.pp == 1:
        if config.vpp > 1:
            yield f"vpp {config.vpp} needs pp > 1: virtual chunks interleave pipeline stages"
        if named or counted:
            yield f"{', '.join(named + counted)}: with pp 1 there is one stage, which has all layers"
    if named and counted:
        yield f"{' and '.join(named + counted)} do not go together: set stages' layers, or count embedding and loss"
    if config.vpp > 1 and config.variable_seq_lengths:
        yield f"vpp {config.vpp} does not go with variable_seq_lengths: interleaved stages exchange rows of one length"
    if len(named) == config.pp == 2 and config.vpp > 1:
        yield f"vpp {config.vpp} with pp 2: name the layers of one stage only; megatron-core cannot place both and chunks"


def uneven_of(config: Parallelism) -> Uneven:
    """Return what makes the stages of a configuration hold different numbers of layers."""
    return Uneven(
        first=config.decoder_first_pipeline_num_layers,
        last=config.decoder_last_pipeline_num_layers,
        embedding=config.account_for_embedding_in_pipeline_split,
        loss=config.account_for_loss_in_pipeline_split,
    )
