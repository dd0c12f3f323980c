"""GPU memory in `mconv plan`: whether a run fits, what would make it fit, and which layouts do."""

from collections.abc import Callable, Set
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from mconv.errors import ConfigError

if TYPE_CHECKING:
    from mconv.train.config import TrainConfig
    from mconv.train.estimate.fit import Gpu, Remedies, Remedy
    from mconv.train.estimate.memory import Rank
    from mconv.train.estimate.plan import RunPlan
    from mconv.train.estimate.speed import Machine
    from mconv.train.estimate.suggest import Suggestion

Plans = Callable[["TrainConfig", int], "RunPlan"]
"""A callback: configuration, number of ranks -> plan."""
LARGEST = 1024
"""Largest number of GPUs tried for a run that does not fit on its own in any way."""


def gpu_of(gigabytes: float | None) -> "Gpu | None":
    """Return the GPU that `--gpu-memory` describes. Raises ConfigError if a plan cannot use it."""
    from mconv.train.estimate.fit import GB, Gpu

    if gigabytes is None:
        return None
    if not 0 < gigabytes < float("inf"):
        raise ConfigError(f"--gpu-memory is {gigabytes:g}; it must be the GB of one GPU, such as 80")
    made = Gpu(round(gigabytes * GB))
    if made.usable <= 0:
        raise ConfigError(
            f"--gpu-memory {gigabytes:g} leaves nothing for a run: {decimal(made.reserved)} of it are kept for the CUDA "
            "context, NCCL and the allocator; it must be the GB of one GPU, such as 80"
        )
    return made


def remedies(plan: "RunPlan", gpu: "Gpu", *, grows: bool, again: Plans) -> "Remedies | None":
    """Return the changes that would make a plan fit; None if it fits."""
    from mconv.train.estimate import fit

    if gpu.holds(plan.ranks):
        return None

    def measure(config: "TrainConfig", world: int) -> "list[Rank]":
        return again(config, world).ranks

    return fit.remedies(plan.config, world=plan.world, grows=grows, gpu=gpu, measure=measure)


def more_gpus(plan: "RunPlan", gpu: "Gpu", fixed: Set[str]) -> "tuple[int, Suggestion] | None":
    """Return the least multiple of the plan's GPUs, doubled each time, on which some layout fits; None if none does."""
    from mconv.train.estimate.suggest import suggest

    world = plan.world
    while (world := 2 * world) <= LARGEST:
        try:
            if found := suggest(plan.config, plan.origin, world=world, gpu=gpu, fixed=fixed, count=1):
                return world, found[0]
        except ConfigError:
            continue
    return None


# ---- for people ------------------------------------------------------------------------------------------------------
def counted(gpu: "Gpu") -> str:
    """Return in words how much of a GPU a plan may use, and why not all of it."""
    from mconv.train.estimate.fit import CONTEXT, WASTE

    return (
        f"{decimal(gpu.usable)} of {decimal(gpu.memory)} a GPU (10^9 bytes), which leaves {decimal(CONTEXT)} and "
        f"{WASTE:.0%} for the CUDA context, NCCL and the allocator"
    )


def fit_lines(plan: "RunPlan", gpu: "Gpu", found: "Remedies | None") -> list[tuple[str, str]]:
    """Return the lines on whether a plan fits, by stage, and on what would make it fit."""
    over = [rank for rank in plan.ranks if rank.peak > gpu.usable]
    ranks = plan.layout.tp * plan.replicas
    of = f"each of {ranks} ranks" if ranks > 1 else "its rank"
    each = [f"stage {rank.stage} needs {decimal(rank.peak)} on {of}{_when(rank)}" for rank in over]
    fullest = max(plan.ranks, key=lambda rank: rank.peak)
    text = f"no: {', '.join(each)}" if over else (
        f"yes: the fullest rank (stage {fullest.stage}) needs {decimal(fullest.peak)}{_when(fullest)}"
    )  # fmt: skip
    lines = [("gpu memory", counted(gpu)), ("fits", text)]
    if found is None:
        return lines
    for number, change in enumerate(found.alone):
        lines.append(("" if number else "would fit", _change(change, plan.world)))
    if found.together:
        lines.append(("would fit", f"{_change(found.together, plan.world)}, all together"))
    return lines


def _when(rank: "Rank") -> str:
    return " (in the optimizer's step)" if rank.peak > rank.total else ""


def _change(change: "Remedy", world: int) -> str:
    from mconv.train.estimate.suggest import flags

    where = f" on {change.world} GPUs" if change.world != world else ""
    return f"{flags(change.fields, whole=True)}{where}: {decimal(change.peak)}"


def more_line(found: "tuple[int, Suggestion] | None", world: int) -> tuple[str, str]:
    """Return the line on a run that no change makes fit."""
    if found is None:
        return "would fit", f"no layout on up to {LARGEST} GPUs"
    count, one = found
    return "would fit", f"nothing on {world}; {one.flags} --world-size {count} ({count} GPUs): {decimal(one.peak)}"


HEAD = ("", "tp", "pp", "vpp", "dp", "micro batch", "micro batches", "recompute", "memory", "step", "bubble", "tp comm.",
        "again")  # fmt: skip


def rows(found: "list[Suggestion]") -> list[tuple[str, ...]]:
    """Return a row of the table for each suggestion."""
    return [
        (
            str(number), str(one.layout.tp), str(one.layout.pp), str(one.layout.vpp), str(one.replicas),
            str(one.config.micro_batch_size), str(one.micro_batches), _recompute(one.config), decimal(one.peak),
            f"{one.step.seconds:.3g} s", f"{one.bubble:.1%}", f"{one.step.tensor / one.step.seconds:.1%}",
            f"{one.step.recompute / one.step.seconds:.1%}",
        )
        for number, one in enumerate(found, 1)
    ]  # fmt: skip


def _recompute(config: "TrainConfig") -> str:
    kind = config.recompute_granularity
    return " ".join([kind, *(config.recompute_modules or [])])


def known(machine: "Machine") -> str:
    """Return in words what the order of suggestions is based on."""
    return (
        "The order is an estimate, not a measurement. It counts operations (with what is recomputed), the idle time of "
        "the pipeline, uneven stages, and bytes between GPUs, at assumed rates: "
        f"{machine.tflops:g} TFLOP/s a GPU, {machine.node} GPUs a machine, {machine.inside / 1e9:g} GB/s between them, "
        f"{machine.outside / 1e9:g} GB/s to other machines. It does not know how fast kernels are at a size, what "
        "else overlaps, or how your network is laid out: time the first two or three for some steps (--log-throughput)."
    )


# ---- for programs ----------------------------------------------------------------------------------------------------
def as_json(plan: "RunPlan", gpu: "Gpu", found: "Remedies | None") -> dict[str, Any]:
    """Return whether a plan fits, for programs."""
    changes = [] if found is None else [*found.alone, *([found.together] if found.together else [])]
    return {
        "memory": gpu.memory,
        "reserved": gpu.reserved,
        "usable": gpu.usable,
        "fits": gpu.holds(plan.ranks),
        "stages": [{"stage": rank.stage, "peak": rank.peak, "free": gpu.usable - rank.peak} for rank in plan.ranks],
        "would_fit": [{"fields": one.fields, "world": one.world, "peak": one.peak} for one in changes],
    }


def suggestion_json(one: "Suggestion") -> dict[str, Any]:
    """Return one suggestion, for programs."""
    from dataclasses import asdict

    from mconv.train.estimate.suggest import VARIED

    return {
        "fields": {name: getattr(one.config, name) for name in VARIED},
        "flags": one.flags,
        "dp": one.replicas,
        "micro_batches": one.micro_batches,
        "peak": one.peak,
        "bubble": one.bubble,
        "step": {**asdict(one.step), "seconds": one.step.seconds},
    }
