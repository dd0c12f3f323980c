"""The trials of a sweep over layouts, micro batches and numbers of ranks, and which of them a plan rules out."""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from rich.filesize import decimal

from mconv.errors import MconvError
from mconv.train.config import TrainConfig
from mconv.train.estimate import plan, suggest
from mconv.train.estimate.fit import Gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The memory that trials have."""

    gpu: Gpu | None
    """Memory of each GPU; None where ranks run on the CPU."""
    free: int | None = None
    """Bytes that all ranks share without a GPU; None where that is not known."""

    def lacks(self, made: plan.RunPlan) -> str | None:
        """Return why a plan does not fit; None where it does."""
        if self.gpu is not None:
            peak = max(rank.peak for rank in made.ranks)
            usable = f"{decimal(self.gpu.usable)} of {decimal(self.gpu.memory)} can be used"
            return None if self.gpu.holds(made.ranks) else f"its fullest rank needs {decimal(peak)}; {usable}"
        each = made.world // made.layout.pp
        needs = sum(rank.peak for rank in made.ranks) * each
        fits = self.free is None or needs <= self.free
        return None if fits else f"its ranks need {decimal(needs)} together; {decimal(self.free or 0)} are free"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A way to run that is to be measured, or why it is not."""

    world: int
    tp: int
    pp: int
    micro_batch_size: int
    config: TrainConfig | None = None
    """The run; None where even a configuration refuses it."""
    peak: int | None = None
    """Bytes of the fullest rank, as planned; None where there is no plan."""
    refused: str | None = None

    @property
    def replicas(self) -> int:
        """Return the number of data-parallel replicas."""
        return max(1, self.world // (self.tp * self.pp))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What varies over a configuration, and what stays."""

    worlds: Sequence[int]
    micro_batches: Sequence[int]
    fixed: Set[str]
    """Fields of the layout that stay as the configuration has them."""
    weak: bool
    """True if the global batch grows with the replicas: each replica then has that of the configuration."""
    room: Room


def trials(config: TrainConfig, sweep: Sweep) -> Iterator[Trial]:
    """Yield every trial of a sweep, those that are refused with the reason."""
    layers, most = plan.opened(config)[1].spec.num_layers, max(sweep.worlds)
    for world in sweep.worlds:
        for tp, pp, vpp in suggest.sizes(config, layers=layers, world=world, node=most, fixed={*sweep.fixed, "vpp"}):
            fields = {"tp": tp, "pp": pp, "vpp": vpp if pp > 1 else 1, "nproc_per_node": world}
            fields["sequence_parallel"] = tp > 1 and (config.sequence_parallel or "sequence_parallel" not in sweep.fixed)
            for size in sweep.micro_batches:
                yield _trial(config, sweep, world, {**fields, "micro_batch_size": size})


def _trial(config: TrainConfig, sweep: Sweep, world: int, fields: dict[str, Any]) -> Trial:
    trial = Trial(world=world, **{name: fields[name] for name in ("tp", "pp", "micro_batch_size")})
    if sweep.weak:
        fields |= {"global_batch_size": config.global_batch_size * trial.replicas}
    try:
        made = plan.plan(changed := replace(config, **fields), world=world, endless=True, cpu=sweep.room.gpu is None)
    except MconvError as error:
        return replace(trial, refused=str(error))
    return replace(
        trial, config=changed, peak=max(rank.peak for rank in made.ranks), refused=sweep.room.lacks(made)
    )  # fmt: skip
