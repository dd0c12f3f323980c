"""`mconv plan`: what a training configuration asks for, before anything is started."""

import dataclasses
import json as json_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.filesize import decimal

from mconv.cli import choose
from mconv.cli import options as o
from mconv.cli.train import check_load, told, with_fields
from mconv.train.config import make

if TYPE_CHECKING:
    from mconv.train.estimate.plan import Plan

World = Annotated[int | None, Parameter(help="Ranks over all machines; nproc_per_node, or tp * pp, if not given.")]
Tokens = Annotated[float | None, Parameter(help="Tokens a second over all ranks, to tell the days by.")]
Tflops = Annotated[float | None, Parameter(help="TFLOP/s of each rank, to tell the days by.")]
Presets = Annotated[bool, Parameter(help="List the models that `preset` names, and nothing else.", negative=())]
Cpu = Annotated[
    bool, Parameter(help="For ranks without a GPU, whose kernels keep more of what is dropped out.", negative=())
]
COLUMNS = ("weights", "gradients", "optimizer", "activations", "total")


def _plan(
    config: Path | None = None,
    /,
    *,
    world_size: World = None,
    tokens_per_second: Tokens = None,
    tflops: Tflops = None,
    cpu: Cpu = False,
    presets: Presets = False,
    json: o.Json = False,
    **flags: Any,
) -> int:
    """What a run asks for.

    Parameters
    ----------
    config
        A YAML file with `field: value` lines, the fields being the flags below with underscores.
    """
    if presets:
        print(json_.dumps(_presets(), indent=1) if json else "\n".join(_preset_lines()))
        return 0
    given = told(config, flags)
    values, known = _filled(_inherited(given) if given.get("resume") else given)
    asked = make(values)
    check_load(asked)
    from mconv.train.estimate.plan import plan

    pace = {"tokens_per_second": tokens_per_second, "tflops": tflops}
    made = plan(asked, world=world_size, endless=not known, cpu=cpu, **pace)
    if json:
        print(json_.dumps(as_json(made), indent=1))
    else:
        show(made)
        new = flags.get("preset") or flags.get("model")
        choose.next_training(config, **{**flags, "init": "random" if new else flags.get("init")})
    return 0


def _inherited(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with the settings of the run that `resume` goes on with, where they are not given."""
    from mconv.train.checkpoints.inherit import filled

    return filled(values).values


def _filled(values: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The fields with what a plan does not depend on filled in, and whether they say how long the run is."""
    known = any(values.get(name) is not None for name in ("train_iters", "train_samples"))
    read = any(values.get(name) for name in ("mock_data", "train_data"))
    idle: dict[str, Any] = {"lr": 1.0, "data": None if read else ["none"]}
    if not known:
        idle |= {"train_iters": 1 << 40}
    if values.get("preset") or values.get("model"):
        idle |= {"init": "random"}
    return {**idle, **{name: value for name, value in values.items() if value is not None}}, known


def as_json(plan: "Plan") -> dict[str, Any]:
    """For programs; bytes, samples and tokens are whole numbers, operations are of forward and backward."""
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
        "pace": None if plan.pace is None else dataclasses.asdict(plan.pace),
    }


def show(plan: "Plan") -> None:
    """For people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="", pad_edge=False)
    table.add_column("stage")
    partly = any(rank.trained < rank.parameters for rank in plan.ranks)
    counts = ("layers", "parameters", *(["trained"] if partly else []))
    for name in (*counts, *COLUMNS):
        table.add_column(name, justify="right")
    for rank in plan.ranks:
        numbers = (f"{getattr(rank, name):,}" for name in counts)
        table.add_row(str(rank.stage), *numbers, *(decimal(getattr(rank, name)) for name in COLUMNS))
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, 100)  # in a narrow pipe rich would cut numbers short
    console.print("\n".join(f"{name:<11} {text}" for name, text in _head(plan)), markup=False)
    console.print(table)
    console.print("\n".join(f"{name:<11} {text}" for name, text in _tail(plan)), markup=False)


def _head(plan: "Plan") -> list[tuple[str, str]]:
    spec, layout, dummy = plan.origin.spec, plan.layout, plan.layout.padded_vocab - plan.origin.spec.vocab_size
    shape = f"{spec.family}, {spec.num_layers} layers x {spec.hidden_size}, {spec.num_attention_heads} heads"
    size = f"{plan.origin.parameters:,} parameters"
    chunks = f" x vpp {layout.vpp}" if layout.vpp > 1 else ""
    return [
        ("model", f"{plan.origin.name}: {shape}, {size}"),
        ("vocabulary", f"{spec.vocab_size:,} padded to {layout.padded_vocab:,} ({dummy:,} dummy tokens)"),
        ("ranks", f"{plan.world}: tp {layout.tp} x pp {layout.pp}{chunks} x dp {plan.replicas}; seq_length "
                  f"{plan.seq_length}, {plan.micro_batches} micro batches a step"),
        ("precision", f"{plan.precision.name}, {plan.precision.why}"),
        ("", "of each rank, by its stage:"),
    ]  # fmt: skip


def _tail(plan: "Plan") -> list[tuple[str, str]]:
    run = "" if plan.flops is None else f", {plan.flops:.3g} in all"
    lines = [("operations", f"{plan.flops_per_token:.4g} a token, {plan.flops_per_iteration:.4g} an iteration{run}")]
    if plan.samples is not None and plan.iterations is not None:
        data = ", ".join(f"{name} {count:,}" for name, count in dataclasses.asdict(plan.samples).items())
        lines += [("run", f"{plan.iterations:,} iterations, {plan.tokens:,} tokens"), ("samples", data)]
    if plan.pace is not None:
        days = "" if plan.pace.days is None else f": {plan.pace.days:.1f} days"
        rate = f"{plan.pace.tokens_per_second:,.0f} tokens/s, {plan.pace.tflops:.1f} TFLOP/s a rank"
        lines += [("time", f"at {rate}{days}")]
    return lines


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
