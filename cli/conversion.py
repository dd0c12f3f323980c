"""Steps that all conversion commands share: what they refuse to read, and how a plan is carried out and shown."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mconv.cli import choose, located
from mconv.cli import options as o
from mconv.cli.terminal import command, progress
from mconv.errors import MconvError

if TYPE_CHECKING:
    from mconv.convert.checkpoint.model import Checkpoint, SourceModel
    from mconv.convert.engine.plan import Plan


def open_megatron(path: Path, reading: o.Reading) -> "Checkpoint":
    """Return the Megatron checkpoint at `path`. Raises MconvError for any other."""
    check_kind(path, hf=False)
    return reading.open(located.checkpoint(path, reading.iteration))


def open_two(a: Path, b: Path, reading: o.Reading) -> "tuple[SourceModel, SourceModel]":
    """Return two checkpoints that are compared; print what one leaves open and is taken from the other."""
    from mconv.verify.checkpoints import open_both

    one, two = open_both(a, b, reading.hints)
    for note in dict.fromkeys([*one.assumed, *two.assumed]):
        choose.say(f"note: {note}")
    return one.checkpoint, two.checkpoint


def check_kind(path: Path, *, hf: bool) -> None:
    """Refuse a Megatron checkpoint where a Hugging Face model is needed, and the reverse; name the right command."""
    from mconv.convert.folders.kinds import MEGATRON
    from mconv.convert.folders.recognize import what_is

    found = what_is(path)
    if hf and found.kind in MEGATRON:
        raise MconvError(
            f"{path} is {found.text} already; `mconv reshard {path}` changes its layout, `mconv meg2hf {path}` exports it"
        )
    if not hf and found.kind in ("hf", "meta", "mistral"):
        raise MconvError(f"{path} is {found.text}, not a Megatron checkpoint; `mconv hf2meg {path}` makes one of it")


def run_plan(plan: "Plan", step: str, *, show: o.Show, allow_nonfinite: bool, hint: bool = True) -> None:
    """Carry out a plan, or only show it; `hint` adds the command that usually follows."""
    from mconv.cli import plan as words
    from mconv.convert.engine.problems import shortage

    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    if not show.dry_run:
        _carry_out(plan, step, allow_nonfinite=allow_nonfinite)
    if show.json:
        print(words.as_json(plan, written=not show.dry_run, tensors=show.tensors))
    else:
        print("\n".join(words.lines(plan, written=not show.dry_run, tensors=show.tensors)))
        if hint and not show.dry_run and (line := choose.next_line(plan, step)):
            print(line)
    if show.dry_run and (short := shortage(plan)):
        raise MconvError(f"{short}; this plan could not be carried out here")


def _carry_out(plan: "Plan", step: str, *, allow_nonfinite: bool) -> None:
    from mconv.convert.engine.ranks import joined
    from mconv.convert.engine.rewrite import rewrite

    passes = plan.model.passes
    total = plan.nbytes * passes
    with joined() as ranks, progress(total, f"{step} {plan.model.name}", passes=passes) as advance:
        try:
            rewrite(plan, step=step, allow_nonfinite=allow_nonfinite, progress=advance, ranks=ranks, command=command())
        except KeyboardInterrupt:
            print("what is written so far is kept: the same command with --resume completes it", file=sys.stderr)
            raise
