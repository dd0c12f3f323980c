"""`mconv plan`: the cost of a training configuration, before anything is started."""

import dataclasses
import json as json_
from collections.abc import Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.filesize import decimal

from mconv.cli import choose
from mconv.cli import options as o
from mconv.cli import plan_memory as pm
from mconv.cli.fields import check_load, given_values, with_fields
from mconv.errors import ConfigError
from mconv.train.config import TrainConfig, make

if TYPE_CHECKING:
    from mconv.convert.checkpoint.model import SourceModel
    from mconv.train.estimate.fit import Gpu, Remedies
    from mconv.train.estimate.plan import RunPlan
    from mconv.train.estimate.suggest import Suggestion

World = Annotated[
    int | None,
    Parameter(
        name=["--world-size", "--gpus"],
        help="Ranks (GPUs) over all machines; nproc_per_node, or tp * pp, if not given.",
    ),
]
Tokens = Annotated[float | None, Parameter(help="Tokens per second over all ranks, to compute the run's time.")]
Tflops = Annotated[
    float | None, Parameter(help="TFLOP/s of each rank, to compute the run's time, or to rank suggestions.")
]
Presets = Annotated[bool, Parameter(help="List the models that --preset names, and nothing else.", negative=())]
Memory = Annotated[
    float | None,
    Parameter(
        help="Memory of one GPU in GB (10^9 bytes), such as 80: does each rank fit, and if not, what would make it fit? "
        "2 GB and 5 % are left for the CUDA context, NCCL and the allocator."
    ),
]
Suggest = Annotated[
    bool,
    Parameter(
        help="List the layouts that fit --world-size GPUs of --gpu-memory, fastest first by an estimate. Flags of the "
        "layout that are given stay as they are; those of CONFIG may change.",
        negative=(),
    ),
]
Cpu = Annotated[
    bool, Parameter(help="Count the memory of ranks without a GPU, whose kernels keep more for dropout.", negative=())
]
COLUMNS = ("weights", "gradients", "optimizer", "activations", "total")


def _plan(
    config: Path | None = None,
    /,
    *,
    world_size: World = None,
    gpu_memory: Memory = None,
    suggest: Suggest = False,
    tokens_per_second: Tokens = None,
    tflops: Tflops = None,
    cpu: Cpu = False,
    presets: Presets = False,
    json: o.Json = False,
    **flags: Any,
) -> int:
    """Plan a training run.

    Parameters
    ----------
    config
        A YAML file with `field: value` lines, the fields being the flags below with underscores.
    """
    if presets:
        print(json_.dumps(_presets(), indent=1) if json else "\n".join(_preset_lines()))
        return 0
    given = given_values(config, flags)
    values, known = filled(_inherited(given) if given.get("resume") else given)
    asked = make(values)
    check_load(asked)
    gpu = pm.gpu_of(gpu_memory)
    fixed = {name for name, value in flags.items() if value is not None}
    if suggest:
        assumed = " (the default; give yours)" * ("global_batch_size" not in values)
        return _suggest(asked, world_size, gpu, fixed=fixed, tflops=tflops, json=json, assumed=assumed)
    from mconv.train.estimate.plan import plan

    def again(config: TrainConfig, world: int | None) -> "RunPlan":
        return plan(config, world=world, endless=not known, cpu=cpu, tokens_per_second=tokens_per_second, tflops=tflops)

    made = again(asked, world_size)
    grows = world_size is None and made.config.nproc_per_node is None
    found = pm.remedies(made, gpu, grows=grows, again=again) if gpu else None
    if json:
        fit = {"gpu_memory": pm.as_json(made, gpu, found)} if gpu else {}
        print(json_.dumps({**as_json(made), **fit}, indent=1))
    else:
        show(made, gpu, found, fixed)
        if found is None:
            new = flags.get("preset") or flags.get("model")
            choose.next_training(config, **{**flags, "init": "random" if new else flags.get("init")})
    return 0 if found is None else 1


def _suggest(
    config: TrainConfig,
    world: int | None,
    gpu: "Gpu | None",
    *,
    fixed: Set[str],
    tflops: float | None,
    json: bool,
    assumed: str,
) -> int:
    """Print the layouts that fit; return exit code 1 if none does."""
    from mconv.train.estimate.plan import opened
    from mconv.train.estimate.speed import Machine
    from mconv.train.estimate.suggest import suggest

    world = world or config.nproc_per_node
    if gpu is None or world is None:
        raise ConfigError(
            "--suggest needs the GPUs: --world-size, how many, and --gpu-memory, the GB of each, such as 80"
        )
    config, origin, precision = opened(config)
    machine = Machine(node=config.nproc_per_node or 8, **({"tflops": tflops} if tflops else {}))
    found = suggest(config, origin, world=world, gpu=gpu, fixed=fixed, machine=machine)
    if json:
        print(json_.dumps({"suggestions": [pm.suggestion_json(one) for one in found]}, indent=1))
    else:
        _show_suggestions(config, origin, found, world=world, gpu=gpu, notes=(assumed, precision.line, pm.known(machine)))
    return 0 if found else 1


def _show_suggestions(
    config: TrainConfig,
    origin: "SourceModel",
    found: "list[Suggestion]",
    *,
    world: int,
    gpu: "Gpu",
    notes: tuple[str, str, str],
) -> None:
    length = config.seq_length or origin.spec.max_position_embeddings
    run = f"{_length(length, config.seq_length is None)}, global_batch_size {config.global_batch_size}{notes[0]}"
    print(f"{origin.name}: {origin.parameters:,} parameters on {world} GPUs; {run}")
    print(notes[1])
    print(f"memory: {pm.counted(gpu)}")
    if not found:
        print(f"no layout fits on {world} GPUs; try more GPUs, or a smaller seq_length")
        return
    _table(pm.HEAD, pm.rows(found))
    print("\n".join(f"{number}: {one.flags}" for number, one in enumerate(found, 1)))
    print(notes[2])


def _length(length: int, inherited: bool) -> str:
    return f"seq_length {length}" + " (the model's max_position_embeddings)" * inherited


def _inherited(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values, with missing ones from the run that `resume` continues."""
    from mconv.train.checkpoints.inherit import filled

    return filled(values).values


def filled(values: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the fields with placeholders for what a plan does not depend on, and whether they give the run's length."""
    known = any(values.get(name) is not None for name in ("train_iters", "train_samples"))
    read = any(values.get(name) for name in ("mock_data", "train_data"))
    idle: dict[str, Any] = {"lr": 1.0, "data": None if read else ["none"]}
    if not known:
        idle |= {"train_iters": 1 << 40}
    if values.get("preset") or values.get("model"):
        idle |= {"init": "random"}
    return {**idle, **{name: value for name, value in values.items() if value is not None}}, known


def as_json(plan: "RunPlan") -> dict[str, Any]:
    """Return a plan in JSON values. Operations count forward and backward."""
    spec, layout = plan.origin.spec, plan.layout
    return {
        "model": {"name": plan.origin.name, "parameters": plan.origin.parameters, "spec": spec.to_dict()},
        "vocabulary": {
            "true": spec.vocab_size,
            "padded": layout.padded_vocab,
            "dummy": layout.padded_vocab - spec.vocab_size,
        },
        "layout": {"tp": layout.tp, "pp": layout.pp, "vpp": layout.vpp, "dp": plan.replicas, "world": plan.world},
        "precision": dataclasses.asdict(plan.precision),
        "micro_batches": plan.micro_batches,
        "ranks": [{**dataclasses.asdict(rank), "total": rank.total} for rank in plan.ranks],
        "iterations": plan.iterations,
        "samples": None if plan.samples is None else dataclasses.asdict(plan.samples),
        "tokens": plan.tokens,
        "flops": {"per_token": plan.flops_per_token, "per_iteration": plan.flops_per_iteration, "run": plan.flops},
        "pace": None if plan.pace is None else {**dataclasses.asdict(plan.pace), "seconds": plan.pace.seconds},
        "disk": {"checkpoint": plan.checkpoint, "export": plan.export},
    }


def show(
    plan: "RunPlan", gpu: "Gpu | None" = None, found: "Remedies | None" = None, fixed: Set[str] = frozenset()
) -> None:
    """Print a plan; with a GPU, whether it fits, and what would make it fit."""
    partly = any(rank.trained < rank.parameters for rank in plan.ranks)
    counts = ("layers", "parameters", *(["trained"] if partly else []))
    rows = [
        (str(rank.stage), *(f"{getattr(rank, name):,}" for name in counts), *(decimal(getattr(rank, n)) for n in COLUMNS))
        for rank in plan.ranks
    ]
    _lines(_head(plan))
    _table(("stage", *counts, *COLUMNS), rows)
    if gpu:
        _lines(pm.fit_lines(plan, gpu, found))
    if gpu and found and not found.alone and not found.together:
        _lines([pm.more_line(pm.more_gpus(plan, gpu, fixed), plan.world)])
    _lines(_tail(plan))


def _lines(found: list[tuple[str, str]]) -> None:
    print("\n".join(f"{name:<11} {text}" for name, text in found))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns: the first aligned left, numbers right."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    for row in (head, *rows):
        first, *others = (cell.ljust(width) if not at else cell.rjust(width)
                          for at, (cell, width) in enumerate(zip(row, widths, strict=True)))  # fmt: skip
        print("  ".join([first, *others]).rstrip())


def _head(plan: "RunPlan") -> list[tuple[str, str]]:
    spec, layout, dummy = plan.origin.spec, plan.layout, plan.layout.padded_vocab - plan.origin.spec.vocab_size
    shape = f"{spec.family}, {spec.num_layers} layers x {spec.hidden_size}, {spec.num_attention_heads} heads"
    size = f"{plan.origin.parameters:,} parameters"
    chunks = f" x vpp {layout.vpp}" if layout.vpp > 1 else ""
    return [
        ("model", f"{plan.origin.name}: {shape}, {size}"),
        ("vocabulary", f"{spec.vocab_size:,} padded to {layout.padded_vocab:,} ({dummy:,} dummy tokens)"),
        ("ranks", f"{plan.world}: tp {layout.tp} x pp {layout.pp}{chunks} x dp {plan.replicas}; "
                  f"{_length(plan.seq_length, plan.inherited)}, {plan.micro_batches} micro batches a step"),
        ("precision", f"{plan.precision.name}, {plan.precision.why}"),
        ("", "per rank of each stage:"),
    ]  # fmt: skip


def _tail(plan: "RunPlan") -> list[tuple[str, str]]:
    run = "" if plan.flops is None else f", {plan.flops:.3g} in all"
    from mconv.train.estimate.units import duration

    lines = [("operations", f"{plan.flops_per_token:.4g} a token, {plan.flops_per_iteration:.4g} an iteration{run}")]
    if plan.samples is not None and plan.iterations is not None:
        data = ", ".join(f"{name} {count:,}" for name, count in dataclasses.asdict(plan.samples).items())
        lines += [("run", f"{plan.iterations:,} iterations, {plan.tokens:,} tokens"), ("samples", data)]
    if plan.pace is not None:
        time = "" if plan.pace.seconds is None else f": {duration(plan.pace.seconds)}"
        rate = f"{plan.pace.tokens_per_second:,.0f} tokens/s, {plan.pace.tflops:.1f} TFLOP/s a rank"
        lines += [("time", f"at {rate}{time}")]
    return [*lines, ("disk", _disk(plan))]


def _disk(plan: "RunPlan") -> str:
    from mconv.train.estimate.storage import kept

    text = f"{decimal(plan.checkpoint)} a checkpoint with optimizer state, {decimal(plan.export)} an export"
    count = kept(plan.config, plan.iterations) if plan.config.save else None
    return text + (f"; {count:,} checkpoints are kept: {decimal(count * plan.checkpoint)}" if count else "")


def _presets() -> list[dict[str, Any]]:
    from mconv.train.model.initial import parameters
    from mconv.train.model.presets import PRESETS

    return [
        {"name": name, "whose": p.whose, "parameters": parameters(p.spec), "init_method_std": p.init_method_std,
         "spec": p.spec.to_dict()} for name, p in PRESETS.items()
    ]  # fmt: skip


def _preset_lines() -> list[str]:
    return [
        f"{p['name']:<12} {p['parameters'] / 1e9:>7.2f} billion  {p['spec']['num_layers']:>3} layers x "
        f"{p['spec']['hidden_size']:<6} {p['whose']}"
        for p in _presets()
    ]


plan = with_fields(_plan, "plan")
