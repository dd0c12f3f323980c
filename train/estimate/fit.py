"""Whether a plan fits into the memory of a GPU, and the least changes that make it fit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from mconv.errors import MconvError
from mconv.train.config import TrainConfig
from mconv.train.estimate.memory import Rank

GB = 10**9
CONTEXT = 2 * GB
"""Assumed for the CUDA context, NCCL's buffers and workspaces of kernels."""
WASTE = 0.05
"""Share of a GPU that is assumed to be lost to the allocator's fragments and to what operations need briefly."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """The memory of one GPU."""

    memory: int

    @property
    def reserved(self) -> int:
        """Return the bytes that a plan must leave free."""
        return CONTEXT + round(WASTE * self.memory)

    @property
    def usable(self) -> int:
        """Return the bytes for weights, gradients, optimizer state and activations."""
        return self.memory - self.reserved

    def holds(self, ranks: list[Rank]) -> bool:
        """Return whether every rank fits."""
        return all(rank.peak <= self.usable for rank in ranks)


@dataclass(frozen=True, slots=True)
class Remedy:
    """Other settings under which a run needs less."""

    fields: dict[str, Any]
    world: int
    peak: int
    """Bytes of the fullest rank."""


@dataclass(frozen=True, slots=True)
class Remedies:
    """Changes that would make a run fit."""

    alone: list[Remedy]
    """Changes of which each is enough by itself."""
    together: Remedy | None
    """The first changes that are enough together, if no single one is."""


Measure = Callable[[TrainConfig, int], list[Rank]]
"""A configuration and the number of ranks -> memory of each stage. Raises MconvError for one that cannot run."""


def remedies(config: TrainConfig, *, world: int, grows: bool, gpu: Gpu, measure: Measure) -> Remedies:
    """Return what makes a configuration fit: the changes that cost least time first.

    `grows`: whether more tp or pp may ask for more ranks; if not, they take them from the replicas.
    """
    alone: dict[str, Remedy] = {}  # by the first field: of two steps in one direction the smaller one does
    fields: dict[str, Any] = {}
    least, together = max(rank.peak for rank in measure(config, world)), None
    for change in _changes(config, replicas=world // (config.tp * config.pp)):
        found = _measured(config, change, world, grows, measure)
        if found and found.peak <= gpu.usable:
            alone.setdefault(next(iter(change)), found)
        found = _measured(config, {**fields, **change}, world, grows, measure)
        if found and together is None and found.peak < least:
            fields, least = found.fields, found.peak
            together = found if found.peak <= gpu.usable else None
    return Remedies([*alone.values()], None if alone else together)


def _changes(config: TrainConfig, *, replicas: int) -> Iterator[dict[str, Any]]:
    """Yield fields to change, what costs least time first."""
    if config.tp > 1 and not config.sequence_parallel:
        yield {"sequence_parallel": True}
    if replicas > 1 and config.optimizer == "adam" and not config.distributed_optimizer:
        yield {"distributed_optimizer": True}
    if config.recompute_granularity == "none":
        yield {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}
    yield from ({"micro_batch_size": n} for n in (8, 4, 2, 1) if n < config.micro_batch_size)
    if config.recompute_granularity != "full":
        yield {"recompute_granularity": "full", "recompute_modules": None}
    yield from ({"tp": n, "sequence_parallel": True} for n in (2, 4, 8) if n > config.tp)
    yield from ({"pp": n} for n in (2, 4, 8, 16) if n > config.pp)


def _measured(config: TrainConfig, fields: dict[str, Any], world: int, grows: bool, measure: Measure) -> Remedy | None:
    """Return a change with what it needs; None where the run could not be that way."""
    try:
        changed = replace(config, **fields)
        ranks = changed.tp * changed.pp
        wanted = max(world, ranks * (world // (config.tp * config.pp))) if grows else world
        return Remedy(fields, wanted, max(rank.peak for rank in measure(changed, wanted)))
    except MconvError:
        return None
