"""`hf2meg`, `reshard`, `merge` and `meg2hf`: four commands, one engine."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mconv.cli import choose, located
from mconv.cli import options as o
from mconv.cli.conversion import check_kind, open_megatron, run_plan
from mconv.cli.terminal import rank_0_prints
from mconv.convert.folders import naming
from mconv.errors import MconvError, refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mconv.convert.checkpoint.model import Checkpoint
    from mconv.convert.engine.plan import Plan
    from mconv.convert.folders.sidecar import LeftOut

    Export = Callable[[int | None, Path | None, str | None], None]


@rank_0_prints
def hf2meg(
    model: str | None = None,
    *,
    size: str | None = None,
    source: Annotated[str | None, Parameter(name="--from")] = None,
    out: o.Root = None,
    tp: o.Tp = 1,
    pp: o.Pp = 1,
    format: o.MegatronFormat = "torch_dist",
    dialect: Annotated[o.DialectName, Parameter(name=["--dialect", "--to-dialect"])] = "mcore",
    target: o.TargetGroup = o.TARGET,
    iteration: int | None = None,
    offline: o.Flag = False,
    cache_dir: Path | None = None,
    config: o.Config = None,
    params: o.ParamsGroup = o.PARAMS,
    ignoring: o.IgnoringGroup = o.IGNORING,
    show: o.ShowGroup = o.SHOW,
) -> None:
    """Convert a Hugging Face model, or one in Meta's or Mistral's own files, to Megatron.

    Parameters
    ----------
    model
        A folder, a repository ORG/NAME, or a family (llama2, codellama, llama3.1, ...) together with --size.
    size
        Billions of parameters: selects the family's repository; checked against the model's config.json.
    source
        Read the weights from this folder or repository instead; MODEL then only names the output.
    format
        torch_dist loads at any tp and pp; mp_rank is Megatron's older format, one file per rank.
    dialect
        The program to write an mp_rank checkpoint for: its tensor names and row order.
    iteration
        Write the folder iter_N, with N in the tracker, instead of release.
    offline
        Do not contact the Hub: use its local cache only.
    cache_dir
        The Hub's cache. Default: as HF_HOME or HF_HUB_CACHE says.
    """
    name, folder, origin = _find(model, source, size=size, cache_dir=cache_dir, offline=offline)
    check_kind(located.checkpoint(folder), hf=True)
    from mconv.convert.checkpoint.open import open_checkpoint

    checkpoint = open_checkpoint(folder, ignore=ignoring.names, config=config, **params.values)
    _check_size(checkpoint, model, size)
    kind: dict[str, Any] = {"tp": tp, "pp": pp, "format": format, "dialect": dialect}
    own = f"{Path(name).name}{f'-{size}b' if size else ''}"
    where = out or Path(naming.megatron(own, vpp=target.vpp, dtype=target.dtype, **kind))
    plan = _plan(checkpoint, where, show=show, origin=origin, iteration=iteration, **kind, **target.values)
    run_plan(plan, "hf2meg", show=show, allow_nonfinite=target.allow_nonfinite)


@rank_0_prints
def reshard(
    checkpoint: o.Checkpoint = None,
    *,
    out: o.Root = None,
    tp: o.OwnTp = None,
    pp: o.OwnPp = None,
    format: o.OwnFormat = None,
    to_dialect: o.DialectName | None = None,
    target: o.TargetGroup = o.TARGET,
    reading: o.ReadingGroup = o.READING,
    show: o.ShowGroup = o.SHOW,
) -> None:
    """Rewrite a Megatron checkpoint for another layout or in another format. Optimizer state is left out.

    Parameters
    ----------
    to_dialect
        The program to write an mp_rank checkpoint for: its tensor names and row order. Default: the checkpoint's.
    """
    found = open_megatron(choose.megatron(checkpoint, "reshard"), reading)
    from mconv.shard.stages import EVEN

    layout = found.layout
    assert layout is not None
    values, kind = target.values, _kind(found, format, to_dialect)
    if values["uneven"] == EVEN and pp in (None, layout.pp) and target.vpp == layout.vpp:
        values["uneven"] = layout.uneven
    sizes = {"tp": layout.tp if tp is None else tp, "pp": layout.pp if pp is None else pp}
    where = out or _root(found, vpp=target.vpp, dtype=target.dtype, **kind, **sizes)
    plan = _plan(found, where, show=show, **kind, **sizes, **values)
    run_plan(plan, "reshard", show=show, allow_nonfinite=target.allow_nonfinite)


@rank_0_prints
def merge(
    checkpoint: o.Checkpoint = None,
    *,
    out: o.Root = None,
    format: o.OwnFormat = None,
    reading: o.ReadingGroup = o.READING,
    overwrite: o.Overwrite = False,
    resume: o.Resume = False,
    show: o.ShowGroup = o.SHOW,
) -> None:
    """Merge all ranks of a Megatron checkpoint into one: `reshard --tp 1 --pp 1`."""
    found = open_megatron(choose.megatron(checkpoint, "merge"), reading)
    kind = _kind(found, format, None)
    plan = _plan(found, out or _root(found, **kind), show=show, overwrite=overwrite, resume=resume, **kind)
    run_plan(plan, "merge", show=show, allow_nonfinite=False)


@rank_0_prints
def meg2hf(
    checkpoint: o.Checkpoint = None,
    *,
    out: o.Folder = None,
    dtype: o.Cast = None,
    max_shard_size: float = 5.0,
    tokenizer: Path | None = None,
    iterations: str | None = None,
    reading: o.ReadingGroup = o.READING,
    overwrite: o.Overwrite = False,
    resume: o.Resume = False,
    allow_nonfinite: o.AllowNonfinite = False,
    show: o.ShowGroup = o.SHOW,
) -> None:
    """Convert a Megatron checkpoint, of any layout, to a Hugging Face folder.

    Parameters
    ----------
    max_shard_size
        Largest safetensors file, in GB.
    tokenizer
        Copy the tokenizer and generation files from this folder instead of the checkpoint's own.
    iterations
        Convert several iterations, `all` or a list (100,200), each to OUT/iter_NNNNNNN. Finished ones are skipped.
    """
    settings = {
        "shard_bytes": located.shard_bytes(max_shard_size),
        "side_folder": tokenizer and located.side_folder(tokenizer),
    }
    source = choose.megatron(checkpoint, "meg2hf")

    def export(iteration: int | None, where: Path | None, fingerprint: str | None = None) -> None:
        found = open_megatron(source, replace(reading, iteration=iteration))
        where = where or Path(naming.hugging_face(choose.called(found), iteration=found.iteration, dtype=dtype))
        options = {**settings, "dtype": dtype, "overwrite": overwrite, "resume": resume, "fingerprint": fingerprint}
        plan = _plan(found, where, show=show, format="hf", **options)
        run_plan(plan, "meg2hf", show=show, allow_nonfinite=allow_nonfinite, hint=fingerprint is None)

    if iterations is None:
        export(reading.iteration, out)
        return
    if reading.iteration is not None:
        raise MconvError("give --iteration or --iterations, not both")
    where = out or Path(naming.hugging_face(choose.called_path(source), dtype=dtype))
    marked = {"dtype": dtype, **settings, **reading.values, "ignore": reading.names}
    marked.pop("iteration")
    _each(source, iterations, where, export, marked=marked)


def _each(root: Path, word: str, out: Path, export: "Export", *, marked: dict[str, Any]) -> None:
    """Export each iteration that `word` selects, except finished ones; raise at the end for those that failed."""
    from mconv.convert.engine import iterations

    failed = []
    for number in iterations.wanted(root, word):
        name = f"iter_{number:07d}"
        mark = iterations.mark(root / name, **marked)
        if iterations.is_done(out / name, mark):
            print(f"{out / name}: already there")
            continue
        try:
            export(number, out / name, mark)
        except MconvError as error:
            failed.append(f"{name}: {error}")
            print(f"{out / name}: not exported")
    refuse(failed, doing=f"{root}: not every iteration could be exported")


# ---- shared ----------------------------------------------------------------------------------------------------------
def _find(
    model: str | None, source: str | None, *, size: str | None, cache_dir: Path | None, offline: bool
) -> tuple[str, Path, str | None]:
    """Return the name of a model, its folder, and the repository that it comes from (None for a local folder)."""
    from mconv.hub import catalog, fetch

    named = source or model
    if named is None:
        raise MconvError("give a model: `mconv hf2meg llama2 --size 7`, `mconv hf2meg FOLDER`, or `--from FOLDER`")
    if Path(named).expanduser().is_file():
        located.checkpoint(Path(named).expanduser())
    local = Path(named).expanduser().is_dir()
    picked = size if not source or catalog.is_family(source) else None
    folder = fetch.resolve(named, size=picked, cache_dir=cache_dir, offline=offline, tell=_note_left_out)
    called = folder.resolve().name if local else Path(named).name
    return model or called, folder, None if local else catalog.repository(named, size=picked)


def _check_size(checkpoint: "Checkpoint", model: str | None, size: str | None) -> None:
    """Refuse a model that does not have the number of parameters that --size says."""
    from mconv.hub import catalog

    if size is not None:
        family = None if model is None or Path(model).expanduser().is_dir() else model
        catalog.check_size(checkpoint.parameters, size=size, family=family)


def _note_left_out(left_out: "Sequence[LeftOut]") -> None:
    """Print which files of a repository were not downloaded."""
    from mconv.convert.folders.sidecar import note

    if text := note(left_out):
        print(f"note: {text}", file=sys.stderr)


def _kind(found: "Checkpoint", format: str | None, dialect: str | None) -> dict[str, Any]:
    """Return the format and the dialect to write: as asked, else the checkpoint's own."""
    kept = format or found.format
    return {"format": kept, "dialect": dialect or (found.dialect if kept == "mp_rank" else "mcore")}


def _root(found: "Checkpoint", **kind: Any) -> Path:
    """Return the default name of a Megatron root that is made from a checkpoint. Refuses the checkpoint's own name."""
    name = naming.megatron(choose.called(found), iteration=found.iteration, **kind)
    if Path(name).resolve() == choose.root_of(found.path).resolve():
        raise MconvError(
            f"the result would be called {name}, the checkpoint's own name; ask for another layout, or give --out"
        )
    return Path(name)


def _plan(checkpoint: "Checkpoint", out: Path, *, show: o.Show, **options: Any) -> "Plan":
    from mconv.convert.engine import plan

    return plan.make(checkpoint, out, check_room=not show.dry_run, **options)
