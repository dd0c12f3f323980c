"""`mconv doctor`: the devices, memory and packages that this machine offers to a run."""

import json as json_
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.filesize import decimal

from mconv.cli import choose
from mconv.cli import options as o

Save = Annotated[Path, Parameter(help="The folder that a run would save to, to show the free space on its disk.")]


def doctor(*, save: Save = Path(), json: o.Json = False) -> int:
    """Show what this machine offers to a training run: devices, backends, memory, disk, limits, versions. Exit code 0."""
    from mconv.train.estimate import machine

    facts = machine.machine(save)
    notes = list(machine.advice(facts))
    if json:
        print(json_.dumps({**facts, "advice": notes}, indent=1))
    else:
        print("\n".join(f"{name:<15} {text}" for name, text in [*_lines(facts), *(("note", note) for note in notes)]))
        choose.next_command("plan", "--presets")
    return 0


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    found, backends, memory, shm = (facts[name] for name in ("devices", "backends", "memory", "shm"))
    each = [f"{d['name']}, {decimal(d['memory'])}, capability {d['capability']}" for d in found]
    helpers = {True: "built", False: "not built", None: "no megatron-core"}[facts["dataset_helpers"]]
    return [
        *(("device", text) for text in each or ["CPU only"]),
        ("backends", ", ".join(f"{n} {v}".removesuffix(" yes") for n, v in backends.items() if v) or "no backend"),
        ("cores", str(facts["cores"])),
        ("memory", _room(memory)),
        ("/dev/shm", _room(shm)),
        ("disk", f"{decimal(facts['disk']['free'])} free for {facts['disk']['folder']}"),
        ("open files", "no limit" if facts["open_files"] is None else f"{facts['open_files']:,}"),
        ("versions", ", ".join(f"{name} {text or 'none'}" for name, text in facts["versions"].items())),
        ("extras", ", ".join(f"{name} {text or 'no'}" for name, text in facts["extras"].items())),
        ("dataset helpers", helpers),
        ("Hub token", "there is one" if facts["hub_token"] else "none"),
    ]


def _room(room: dict[str, int] | None) -> str:
    return f"{decimal(room['size'])}, {decimal(room['free'])} free" if room else "not known"
