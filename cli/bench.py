"""`mconv bench`: the speed of a run at every layout, micro batch and number of ranks that this machine has."""

import dataclasses
import json as json_
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mconv import extras
from mconv.cli import bench_report as report
from mconv.cli import options as o
from mconv.cli import plan_memory as pm
from mconv.cli.fields import check_load, given_values, with_fields
from mconv.cli.terminal import before_slow
from mconv.cli.train_plan import filled
from mconv.errors import ConfigError, MconvError
from mconv.train.config import SECTIONS, TrainConfig, make

if TYPE_CHECKING:
    from mconv.train.estimate.sweep import Sweep, Trial

LEFT_OUT = ("Checkpoints", "Hooks", "Stops", "Evaluation", "Logs", "Profiling", "Guards")
"""Sections of a run that a trial leaves at their defaults: it saves, measures and logs nothing else."""
UNREAD = ("valid_data", "test_data", "micro_batch_size", "rampup_batch_size", "nproc_per_node")
"""Other fields that a trial does not take from a run."""
LAYOUT = ("tp", "pp", "vpp", "sequence_parallel")
"""Fields of the layout that stay as a flag gives them."""
PRELOAD = ("mconv.train.loop.trial",)
BATCHES = (1, 2, 4, 8)

Worlds = Annotated[
    list[int] | None,
    Parameter(
        name=["--world-sizes", "--gpus"], consume_multiple=True, negative=(),
        help="Numbers of ranks to try on this machine; 1, 2, 4 and so on up to its GPUs (without any: its cores) if not "
        "given.",
    ),
]  # fmt: skip
MicroBatches = Annotated[
    list[int] | None,
    Parameter(
        consume_multiple=True, negative=(),
        help="Micro batch sizes to try; 1, 2, 4 and 8, or --micro-batch-size alone, if not given.",
    ),
]  # fmt: skip
Steps = Annotated[int, Parameter(help="Steps of each trial whose median counts.")]
Warmup = Annotated[int, Parameter(help="Steps of each trial before those, which do not count.")]
Weak = Annotated[
    bool,
    Parameter(
        help="Weak scaling: global_batch_size is that of one replica, and grows with them; else all trials share it.",
        negative=(),
    ),
]
Memory = Annotated[
    float | None,
    Parameter(help="Memory of one GPU in GB (10^9 bytes), where it is to count as less than the device has."),
]
Plot = Annotated[Path | None, Parameter(help="Also draw the table: a .png, .svg or .pdf file.")]
DryRun = Annotated[bool, Parameter(help="List the trials, and those that are refused, and run none.", negative=())]


def _bench(
    config: Path | None = None,
    /,
    *,
    world_sizes: Worlds = None,
    micro_batches: MicroBatches = None,
    steps: Steps = 5,
    warmup: Warmup = 2,
    weak: Weak = False,
    gpu_memory: Memory = None,
    plot: Plot = None,
    dry_run: DryRun = False,
    json: o.Json = False,
    **flags: Any,
) -> int:
    """Measure a run's layouts.

    Parameters
    ----------
    config
        A YAML file with `field: value` lines, the fields being the flags below with underscores.
    """
    from mconv.train.data import sources
    from mconv.train.estimate.sweep import trials
    from mconv.train.launch.ranks import joined

    if joined():
        raise MconvError("mconv bench starts the ranks of each trial itself; start it once, without torchrun or srun")
    _check(steps=steps, warmup=warmup, plot=plot)
    extras.need("train", "megatron.core", "psutil", to="mconv bench")
    base = _base(given_values(config, flags), steps=warmup + steps)
    check_load(base)
    sources.check_present(base)
    found = list(trials(base, _sweep(world_sizes, micro_batches, flags, weak=weak, gpu_memory=gpu_memory)))
    results = report.Results(base, found, [] if dry_run else list(_measured(found, steps=steps, warmup=warmup)))
    if plot and results.measured:
        report.draw(results, plot)
    print(json_.dumps(results.as_json(), indent=1) if json else "\n".join(results.lines(dry_run=dry_run)))
    return 0 if results.measured or (dry_run and any(not trial.refused for trial in found)) else 1


def _check(*, steps: int, warmup: int, plot: Path | None) -> None:
    """Refuse what could only fail after all trials."""
    if steps < 1 or warmup < 0:
        raise ConfigError(f"--steps is {steps} and --warmup {warmup}; at least 1 step and 0 before it are needed")
    if plot:
        report.check_plot(plot)


def _base(values: dict[str, Any], *, steps: int) -> TrainConfig:
    """Return the run that trials vary: without what it saves, logs and evaluates, and long enough for a trial."""
    dropped = {name for section in SECTIONS if section.__name__ in LEFT_OUT for name in section.__annotations__}
    kept = {name: value for name, value in values.items() if name not in {*dropped, *UNREAD}}
    reads = any(kept.get(name) for name in ("data", "train_data", "mock_data"))
    made, known = filled(kept)
    made |= {} if known else {"train_iters": steps}
    made |= {} if reads else {"data": None, "mock_data": True}
    return make({**made, **({"finetune": True} if kept.get("load") else {})})


def _sweep(
    worlds: list[int] | None, micro_batches: list[int] | None, flags: dict[str, Any], *, weak: bool,
    gpu_memory: float | None,
) -> "Sweep":  # fmt: skip
    """Return what varies. Raises ConfigError on more ranks than this machine has."""
    from mconv.convert.folders.host import cores
    from mconv.train.estimate import machine
    from mconv.train.estimate.fit import Gpu
    from mconv.train.estimate.sweep import Room, Sweep

    devices = machine.devices()
    most = len(devices) or cores()
    worlds = worlds or [1 << n for n in range(most.bit_length()) if 1 << n <= most]
    sizes = micro_batches or ([flags["micro_batch_size"]] if flags.get("micro_batch_size") else list(BATCHES))
    if min([*worlds, *sizes]) < 1 or max(worlds) > most:
        raise ConfigError(
            f"--world-sizes {worlds} and --micro-batches {sizes} must be at least 1, and ranks no more than the {most} "
            f"{'GPUs' if devices else 'cores'} of this machine"
        )
    gpu = pm.gpu_of(gpu_memory) or (Gpu(min(d["memory"] for d in devices)) if devices else None)
    room = Room(gpu=gpu, free=(machine.memory() or {}).get("free"))
    fixed = {name for name in LAYOUT if flags.get(name) is not None}
    return Sweep(worlds=sorted({*worlds}), micro_batches=sorted({*sizes}), fixed=fixed, weak=weak, room=room)


def _measured(found: "Sequence[Trial]", *, steps: int, warmup: int) -> "Iterator[report.Measured]":
    """Yield the measurement of each trial that is not refused; one that fails is refused with its reason."""
    todo = [trial for trial in found if not trial.refused]
    before_slow(f"{len(todo)} trials of {warmup + steps} steps each")
    with tempfile.TemporaryDirectory(prefix="mconv-bench-") as folder:
        for number, trial in enumerate(todo, 1):
            one = report.measured(trial, _run(trial, Path(folder), steps=warmup + steps), warmup=warmup)
            before_slow(f"trial {number} of {len(todo)}: {one.described}")
            yield one


def _run(trial: "Trial", folder: Path, *, steps: int) -> "dict[str, Any] | MconvError":
    """Return what the ranks of one trial have measured, or the error that it ended with."""
    from mconv.train.launch.ranks import run

    assert trial.config is not None
    fields = dataclasses.asdict(trial.config)
    fields["data_cache"] = fields["data_cache"] or str(folder / "data-cache")
    payload = {"config": fields, "steps": steps}
    try:
        return run("mconv.train.loop.trial:measure", payload, nproc=trial.world, preload=PRELOAD, apart=True)
    except MconvError as error:
        return error


bench = with_fields(_bench, "bench")
