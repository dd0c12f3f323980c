"""Layouts of a run that fit a number of GPUs, fastest first by `speed.py`'s estimate."""

import math
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from typing import Any

from mconv.convert.checkpoint.model import SourceModel
from mconv.errors import ConfigError, MconvError, refuse
from mconv.shard.layout import Layout
from mconv.train.config import TrainConfig
from mconv.train.estimate import memory, plan, speed
from mconv.train.estimate.fit import Gpu
from mconv.train.model.trainable import Trainable

BATCHES = (1, 2, 4, 8, 16)
CHUNKS = (1, 2, 3, 4, 5, 6, 8, 10)
RECOMPUTE: tuple[dict[str, Any], ...] = (
    {"recompute_granularity": "none", "recompute_modules": None},
    {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
    {"recompute_granularity": "full", "recompute_modules": None},
)
VARIED = (
    "tp", "pp", "vpp", "micro_batch_size", "recompute_granularity", "recompute_modules", "sequence_parallel",
    "distributed_optimizer", "overlap_grad_reduce", "overlap_param_gather",
)  # fmt: skip
"""Fields that a suggestion sets, in the order of its flags."""
SHARING = {"distributed_optimizer", "overlap_grad_reduce", "overlap_param_gather"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A layout that fits."""

    config: TrainConfig
    layout: Layout
    replicas: int
    micro_batches: int
    peak: int
    """Bytes of the fullest rank."""
    step: speed.StepTime

    @property
    def bubble(self) -> float:
        """Return the idle share of the pipeline's schedule."""
        idle = (self.layout.pp - 1) / self.layout.vpp
        return idle / (self.micro_batches + idle)

    @property
    def flags(self) -> str:
        """Return the flags to add to a command."""
        return flags({name: getattr(self.config, name) for name in VARIED})


@dataclass(frozen=True, slots=True)
class _Candidate:
    config: TrainConfig
    layout: Layout
    setting: memory.Setting
    step: speed.StepTime


def flags(fields: dict[str, Any], *, whole: bool = False) -> str:
    """Return fields as flags; those that are as by default are left out, unless `whole`."""
    words = []
    for name, value in fields.items():
        if value is True:
            words.append(f"--{name.replace('_', '-')}")
        elif value not in (None, False) and (whole or value not in (1, "none")):
            words.append(f"--{name.replace('_', '-')} {' '.join(value) if isinstance(value, list) else value}")
    return " ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    config: TrainConfig
    opened: SourceModel
    trains: Trainable
    world: int
    fixed: Set[str]
    machine: speed.Machine


def suggest(
    config: TrainConfig,
    opened: SourceModel,
    *,
    world: int,
    gpu: Gpu,
    fixed: Set[str] = frozenset(),
    count: int = 5,
    machine: speed.Machine | None = None,
) -> list[Suggestion]:
    """Return the best layouts that fit `world` GPUs, at most one for each tp and pp, fastest first.

    `fixed`: fields that stay as they are in the configuration. Raises ConfigError where no layout could run at all.
    """
    trains, machine = plan.trains_of(config, opened), machine or speed.Machine()
    search = _Search(config=config, opened=opened, trains=trains, world=world, fixed=fixed, machine=machine)
    reasons = _undivided(search)
    layouts = [] if reasons else list(_layouts(search, reasons))
    if undealt := _undealt(search, layouts):
        raise ConfigError(undealt)
    found = list(_candidates(search, layouts, reasons))
    if not found:
        refuse(list(reasons), doing=f"looking for layouts on {world} GPUs", kind=ConfigError)
    sizes = {"count": opened.parameters, "trained": memory.trained(opened.spec, trains)}
    taken: dict[tuple[int, int], Suggestion] = {}
    for one in sorted(found, key=_order):
        key = one.layout.tp, one.layout.pp
        if key in taken or memory.least(one.layout, one.setting, **sizes) > gpu.usable:
            continue
        if fits := _fitting(one, opened, gpu):
            taken[key] = fits
        if len(taken) == count:
            break
    return list(taken.values())


def _undivided(search: _Search) -> dict[str, None]:
    """Return why the GPUs cannot be divided into ranks of the tp and pp that are given; empty where they can."""
    given = {name: getattr(search.config, name) for name in ("tp", "pp") if name in search.fixed}
    if not search.world % math.prod(given.values()):
        return {}
    return {f"{' x '.join(f'{name} {size}' for name, size in given.items())} does not divide {search.world} GPUs": None}


def _undealt(search: _Search, layouts: list[tuple[TrainConfig, Layout]]) -> str | None:
    """Return why no layout can deal the batch among its replicas; None where one can, or where there is none."""
    batch = search.config.global_batch_size
    fewest = min((search.world // (config.tp * config.pp) for config, _ in layouts), default=0)
    if not fewest or any(batch % (search.world // (config.tp * config.pp)) == 0 for config, _ in layouts):
        return None
    return (
        f"global_batch_size {batch} is not a multiple of the replicas of any layout; {fewest} are the fewest: give a "
        f"multiple of {fewest}, or other GPUs"
    )


def _order(one: _Candidate) -> tuple[int, ...]:
    """Return the key to sort by: time in steps of 1 %, then the simplest layout, then the largest micro batches."""
    layout = one.layout
    return round(100 * math.log(one.step.seconds)), layout.tp * layout.pp, layout.vpp, -one.setting.micro_batch_size


def _fitting(one: _Candidate, opened: SourceModel, gpu: Gpu) -> Suggestion | None:
    ranks = memory.ranks(opened.spec, one.layout, one.setting)
    if not gpu.holds(ranks):
        return None
    return Suggestion(
        config=one.config, layout=one.layout, replicas=one.setting.replicas, micro_batches=one.setting.micro_batches,
        peak=max(rank.peak for rank in ranks), step=one.step,
    )  # fmt: skip


def _candidates(
    search: _Search, layouts: list[tuple[TrainConfig, Layout]], reasons: dict[str, None]
) -> Iterator[_Candidate]:
    """Yield every way in which the run could go on so many GPUs, whether it fits or not; note why others cannot."""
    spec, world = search.opened.spec, search.world
    length = search.config.seq_length or spec.max_position_embeddings
    trained = memory.trained(spec, search.trains)
    for config, layout in layouts:
        replicas = world // (config.tp * config.pp)
        for fields in _choices(search, replicas=replicas):
            changed = replace(config, **fields)
            if bad := list(plan.problems(changed, search.opened, length, world)):
                reasons |= dict.fromkeys(bad)
                continue
            setting = plan.setting_of(
                changed, search.trains, seq_length=length, replicas=replicas, cpu=False,
                micro_batches=changed.global_batch_size // (changed.micro_batch_size * replicas),
            )  # fmt: skip
            step = speed.step(changed, spec, layout, setting, trained=trained, machine=search.machine)
            yield _Candidate(changed, layout, setting, step)


def _layouts(search: _Search, reasons: dict[str, None]) -> Iterator[tuple[TrainConfig, Layout]]:
    """Yield the configuration with each tp, pp and vpp that the model can be cut by, and the layout of it."""
    layers, node = search.opened.spec.num_layers, search.machine.node
    for tp, pp, vpp in sizes(search.config, layers=layers, world=search.world, node=node, fixed=search.fixed):
        fields: dict[str, Any] = {"tp": tp, "pp": pp, "vpp": vpp, "micro_batch_size": 1, "sequence_parallel": tp > 1}
        try:
            changed = replace(search.config, **{name: fields[name] for name in fields.keys() - search.fixed})
            yield changed, plan.layout_of(changed, search.opened)
        except MconvError as error:
            reasons[str(error)] = None


def sizes(config: TrainConfig, *, layers: int, world: int, node: int, fixed: Set[str]) -> Iterator[tuple[int, int, int]]:
    """Yield each tp, pp and vpp that divide `world` GPUs, `node` of them in a machine; `fixed` ones stay as they are."""
    for tp in [config.tp] if "tp" in fixed else (n for n in (1, 2, 4, 8) if n <= min(node, world)):
        for pp in [config.pp] if "pp" in fixed else (n for n in range(1, world // tp + 1) if world % (tp * n) == 0):
            chunks = (n for n in CHUNKS if n == 1 or (pp > 1 and layers % (2 * pp * n) == 0))
            yield from ((tp, pp, vpp) for vpp in ([config.vpp] if "vpp" in fixed else chunks))


def _choices(search: _Search, *, replicas: int) -> Iterator[dict[str, Any]]:
    """Yield what else may vary: the micro batch, what is recomputed, and how replicas share the optimizer's work."""
    config, fixed = search.config, search.fixed
    shares = replicas > 1 and config.optimizer == "adam"
    free = {} if SHARING & fixed else dict.fromkeys(SHARING, shares)
    for size in [config.micro_batch_size] if "micro_batch_size" in fixed else BATCHES:
        for again in [{}] if "recompute_granularity" in fixed else RECOMPUTE:
            yield {**free, "micro_batch_size": size, **again}
