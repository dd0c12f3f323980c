"""`mconv lora extract`: a PEFT adapter from the difference of two models."""

import json as jsonlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mconv.cli import choose, located
from mconv.cli import options as o
from mconv.cli.conversion import open_two
from mconv.cli.terminal import command, progress
from mconv.errors import MconvError

if TYPE_CHECKING:
    from mconv.convert.checkpoint.model import SourceModel
    from mconv.convert.extraction.extract import Extraction, Kept, LeftOut

SHOWN = 3
"""Tensors that are named of those left out."""


def extract(
    tuned: Path,
    base: Path,
    *,
    rank: int,
    out: Path | None = None,
    energy: float | None = None,
    target_modules: str | None = None,
    base_model: str | None = None,
    seed: int = 0,
    overwrite: Annotated[bool, Parameter(help="Replace an adapter at --out.", negative=())] = False,
    resume: o.Resume = False,
    dry_run: o.Flag = False,
    json: o.Json = False,
    reading: o.ReadingGroup = o.READING,
) -> None:
    """Make a PEFT adapter of what a finetune has changed: TUNED - BASE, linear by linear, at a low rank.

    Each model may be in any format and layout. The adapter has the leading singular triplets of each linear's difference;
    what that keeps is reported by module and by layer. Merged into BASE again it gives TUNED's linears to the error told.

    Parameters
    ----------
    tuned
        The finetuned model: a folder or repository of any format.
    base
        The model that it was finetuned from, in any format.
    rank
        Rank of the adapter; with --energy the largest that a module gets.
    out
        The folder to make. Default: the tuned model's name, NAME-adapter.
    energy
        Share of each difference's squared norm that is to be kept, above 0 and at most 1: a module then gets the lowest
        rank that keeps it. Default: every module has the whole rank.
    target_modules
        Linears that get an adapter, as PEFT names them: q_proj,v_proj; lm_head can be named too. Default: all-linear,
        every linear of the layers.
    base_model
        Name of the base model in adapter_config.json: ORG/NAME on the Hub, or a folder. Default: the base's own name on
        the Hub if it came from there, else its folder.
    seed
        Seed of the randomised SVD, which is used for matrices with more than 1024 rows and columns.
    dry_run
        Say what would be done and what memory that needs; write nothing.
    """
    tuned, base = (located.checkpoint(path, reading.iteration) for path in (tuned, base))
    out = _free(out or Path(f"{choose.called_path(tuned)}-adapter"), overwrite=overwrite)
    models = open_two(tuned, base, reading)
    what = _planned(models, rank=rank, energy=energy, targets=target_modules, seed=seed)
    facts = _facts(what, out, rank=rank, written=not dry_run)
    if not dry_run:
        check_memory(what)
        facts |= _result(what, *_carry_out(what, out, base=base_model or _called(models[1]), resume=resume))
    if json:
        print(jsonlib.dumps(facts, indent=1))
        return
    print("\n".join(_lines(facts)))
    if not dry_run:
        choose.next_command("lora", "merge", out, "--base", base)


def _planned(
    models: "Sequence[SourceModel]", *, rank: int, energy: float | None, targets: str | None, seed: int
) -> "Extraction":
    """Plan an extraction from the tuned model and its base; print the memory that it needs."""
    from mconv.convert.extraction import extract as extraction

    tuned, base = models
    wanted = targets.split(",") if targets else None
    what = extraction.plan(tuned, base, rank=rank, energy=energy, targets=wanted, seed=seed)
    choose.say(f"extract: needs about {needs(what)}")
    return what


def _facts(what: "Extraction", out: Path, *, rank: int, written: bool) -> dict[str, Any]:
    """Return what is known of an extraction before it is done, in JSON values."""
    asked = {"out": str(out), "written": written, "modules": len(what.modules), "rank": rank}
    return asked | {"targets": list(what.linears), "peak_bytes": what.peak_bytes}


def _result(what: "Extraction", kept: "list[Kept]", left: "list[LeftOut]") -> dict[str, Any]:
    """Return what an extraction kept of the difference, in JSON values: in all, by layer, by module."""
    from mconv.convert.extraction import extract as extraction

    facts = {**extraction.summary(kept), "layers": extraction.by_layer(what, kept)}
    return facts | {"kept": [asdict(each) for each in kept], "left_out": [asdict(each) for each in left]}


def _carry_out(what: "Extraction", out: Path, *, base: str, resume: bool) -> "tuple[list[Kept], list[LeftOut]]":
    from mconv.convert.extraction import write as extracted

    with progress(what.elements, f"extracting {out}") as advance:
        try:
            return extracted.write(what, out, base=base, resume=resume, command=command(), progress=advance)
        except KeyboardInterrupt:
            choose.say("what is done so far is kept: the same command with --resume completes it")
            raise


def _free(out: Path, *, overwrite: bool) -> Path:
    """Return the folder to make. Raises MconvError if something is there that is not to be replaced."""
    from mconv.convert.peft import folder as peft

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return out
    if not overwrite:
        raise MconvError(f"{out} exists and is not empty; --overwrite replaces an adapter, or name another folder")
    if not peft.is_adapter(out):
        raise MconvError(f"{out} is not an adapter, so --overwrite leaves it; remove it, or name another folder")
    return out


def check_memory(what: "Extraction") -> None:
    """Raise MconvError where this machine has less memory free than an extraction needs."""
    from rich.filesize import decimal

    from mconv.convert.folders.host import memory

    if (room := memory()) and room["free"] < what.peak_bytes:
        raise MconvError(
            f"{decimal(room['free'])} of memory are free, and this needs {needs(what)}; give a lower --rank or fewer "
            "--target-modules, or free memory"
        )


def needs(what: "Extraction") -> str:
    """Return what the extraction will hold in memory, in words."""
    from rich.filesize import decimal

    name, (m, n) = what.largest
    rest = what.peak_bytes - what.factor_bytes
    return (
        f"{decimal(what.peak_bytes)} of memory: {decimal(rest)} for the SVD of {name} ({m} x {n}), "
        f"{decimal(what.factor_bytes)} for the adapter"
    )


def _called(base: "SourceModel") -> str:
    """Return the base's name on the Hub, else the path of its folder."""
    from mconv.convert.checkpoint import base_name

    try:
        return base_name.of_run(base.path, {"path": str(base.path.resolve()), "name": base.name})
    except MconvError:
        return str(base.path)


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    """Yield the facts in words: the adapter, its layers, what it leaves out."""
    made = "" if facts["written"] else "would be "
    yield f"{facts['out']}: {made}rank {facts['rank']} on {', '.join(facts['targets'])} ({facts['modules']} modules)"
    if not facts["written"]:
        return
    ranks = sorted({one["rank"] for one in facts["kept"]})
    if len(ranks) > 1:
        yield f"ranks          {ranks[0]} to {ranks[-1]}"
    yield f"energy kept    {100 * facts['energy']:.4g} %, error {facts['error']:.3g} of the difference's norm"
    for one in facts["layers"]:
        yield f"  {one['name']:<12} {100 * one['energy']:>8.4g} %   error {one['error']:.3g}"
    if left := facts["left_out"]:
        named = ", ".join(_of(one) for one in left[:SHOWN]) + (", ..." if len(left) > SHOWN else "")
        yield f"left out       {len(left)} tensors that differ too: {named}"


def _of(one: dict[str, Any]) -> str:
    """Return a tensor that is left out, and how much of it has changed."""
    apart = one["relative_norm"]
    return f"{one['key']} ({'of another shape, or missing' if apart is None else f'changed by {apart:.2g}'})"
