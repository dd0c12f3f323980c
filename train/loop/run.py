"""The state that a run carries from step to step, and how to save it."""

from dataclasses import dataclass, field
from typing import Any

import torch

from mconv.convert.checkpoint.model import SourceModel
from mconv.spec import ModelSpec
from mconv.train.checkpoints import adapt, checkpoint, metadata
from mconv.train.checkpoints.saving import Saver, Then, nothing
from mconv.train.config import TrainConfig
from mconv.train.estimate.flops import per_token
from mconv.train.logs import log as logs
from mconv.train.megatron.parallel import Parallel
from mconv.train.model.engine import unwrap
from mconv.train.model.trainable import Trainable
from mconv.train.optim.per_token_loss import PerTokenLoss
from mconv.train.optim.replicas import gathered


@dataclass(slots=True, kw_only=True)
class Run:
    """The state that a run carries from step to step."""

    config: TrainConfig
    parallel: Parallel
    spec: ModelSpec
    seq_length: int
    chunks: list[Any]
    """This rank's parts of the model, each in megatron-core's data-parallel wrapper: one, or one a virtual stage."""
    optimizer: Any = None
    """The optimizer; None, like the scheduler, in a run that only evaluates."""
    scheduler: Any = None
    iterations: int
    """Steps of the whole run."""
    iteration: int
    """Steps taken or skipped."""
    consumed: int = 0
    """Samples seen."""
    origin: SourceModel
    """The checkpoint that the run started or resumed from; with LoRA always the base."""
    per_token_loss: PerTokenLoss
    """Divides the gradients of a step by its tokens' weights."""
    saver: Saver | None = None
    """Writes the checkpoints, where there is a folder for them."""
    memory: dict[str, Any] = field(default_factory=dict)
    """Other state that the next step depends on; saved and restored with the checkpoint."""
    begun: str
    """The checkpoint whose iteration the run starts or resumes at; with LoRA it is not `origin`, the base."""
    say: logs.Say
    """Takes lines for people: on rank 0."""

    @property
    def saved(self) -> int | None:
        """Return the last iteration that is saved; None if there is none."""
        return self.saver.saved if self.saver else None

    @property
    def flops_per_token(self) -> float:
        """Return the floating-point operations per token of a step, counting only what this run trains."""
        adapted = adapt.adapted(unwrap(self.chunks[0]))
        trains = Trainable(freeze=tuple(self.config.freeze or ()), adapter=adapted.settings if adapted else None)
        return per_token(self.spec, self.seq_length, trains)

    @property
    def inherited(self) -> dict[str, tuple[Any, str]]:
        """Return the values that the configuration does not give, each with its origin."""
        world, padded = torch.distributed.get_world_size(), unwrap(self.chunks[0]).vocab_size
        found = {"padded_vocab_size": (padded, f"{self.spec.vocab_size} padded for tp {self.parallel.tp}"),
                 "data_parallel_size": (self.parallel.data_parallel(world), f"{world} rank{'s' * (world > 1)}"),
                 **({"iteration": (self.iteration, self.begun)} if self.iteration else {})}  # fmt: skip
        if self.config.seq_length is None:
            found["seq_length"] = (self.seq_length, "the model's max_position_embeddings")
        return found


def save(run: Run, *, then: Then = nothing) -> None:
    """Write a checkpoint of the run, or start to in the background; `then` is called on all ranks when it is whole."""
    assert run.saver is not None
    spec, origin = run.spec, run.origin
    gathered(run.chunks)
    flops = run.flops_per_token * run.seq_length * run.consumed
    state = checkpoint.state(
        iteration=run.iteration, consumed=run.consumed, chunks=run.chunks, optimizer=run.optimizer,
        scheduler=run.scheduler, spec=spec, parallel=run.parallel, memory=run.memory,
        settings=metadata.settings_of(run.config, seq_length=run.seq_length), flops=flops,
    )  # fmt: skip
    args = state["args"]
    run.saver.save(
        run.iteration, state, finish=lambda folder: metadata.finish(folder, spec, args, origin=origin), then=then
    )
