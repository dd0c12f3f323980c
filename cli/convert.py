"""`hf2meg`, `reshard`, `merge` and `meg2hf`: four commands, one engine."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mconv.cli import choose
from mconv.cli import options as o
from mconv.cli.terminal import command, one_voice, progress
from mconv.convert import naming
from mconv.errors import MconvError, refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mconv.convert.checkpoint import Checkpoint
    from mconv.convert.engine.plan import Plan
    from mconv.convert.sidecar import LeftOut
    from mconv.shard.stages import Uneven

    Export = Callable[[int | None, Path | None, str | None], None]


@one_voice
def hf2meg(
    model: str | None = None,
    *,
    size: str | None = None,
    source: Annotated[str | None, Parameter(name="--from")] = None,
    out: Path | None = None,
    tp: int = 1,
    pp: int = 1,
    vpp: o.Chunks = 1,
    decoder_first_pipeline_num_layers: o.FirstStage = None,
    decoder_last_pipeline_num_layers: o.LastStage = None,
    format: o.MegatronFormat = "torch_dist",
    dialect: Annotated[o.ToDialect, Parameter(name=["--dialect", "--to-dialect"])] = None,
    dtype: o.Cast = None,
    make_vocab_size_divisible_by: o.Multiple = None,
    vocab_padding: o.Padding = "zeros",
    overwrite: o.Overwrite = False,
    resume: o.Resume = False,
    allow_nonfinite: o.AllowNonfinite = False,
    show: o.Shown = o.SHOW,
    iteration: int | None = None,
    offline: o.Flag = False,
    cache_dir: Path | None = None,
    emit: o.Emit = None,
    config: o.Config = None,
    max_position_embeddings: int | None = None,
    rope_factor: float | None = None,
    ignoring: o.Ignores = o.IGNORING,
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
    out
        The folder to make. Default: the model's name and layout, NAME-megatron-tp4-pp2.
    tp
        Tensor-parallel size.
    pp
        Pipeline-parallel size.
    format
        torch_dist loads at any tp and pp; mp_rank is Megatron's older format, one file per rank.
    dialect
        The program to write an mp_rank checkpoint for: its tensor names and row order. Default: mcore.
    iteration
        Write the folder iter_N, with N in the tracker, instead of release.
    offline
        Do not contact the Hub: use its local cache only.
    cache_dir
        The Hub's cache. Default: as HF_HOME or HF_HUB_CACHE says.
    max_position_embeddings
        The model's context length, which Meta's and Mistral's params.json does not say. Default: 2048, Mistral 32768.
    rope_factor
        The factor of Llama 3's rope scaling, where Meta's params.json sets use_scaled_rope without a factor.
    """
    from mconv.hub import fetch

    name, folder, origin = _find(model, source, size=size, cache_dir=cache_dir, offline=offline)
    _check_kind(o.checkpoint(folder), hf=True)
    from mconv.convert.opening import open_checkpoint

    said = {"config": config, "max_position_embeddings": max_position_embeddings, "rope_factor": rope_factor}
    checkpoint = open_checkpoint(folder, ignore=ignoring.names, **said)  # type: ignore[arg-type]
    if size is not None:
        family = None if model is None or Path(model).expanduser().is_dir() else model
        fetch.check_size(checkpoint.parameters, size=size, family=family)
    own = f"{Path(name).name}{f'-{size}b' if size else ''}"
    kind: dict[str, Any] = {"tp": tp, "pp": pp, "vpp": vpp, "format": format, "dialect": dialect or "mcore"}
    where = out or Path(naming.megatron(own, dtype=dtype, **kind))
    settings: dict[str, Any] = {"tp": tp, "pp": pp, "vpp": vpp, "vocab_multiple": make_vocab_size_divisible_by}
    settings |= {"dialect": dialect or "mcore", "vocab_padding": vocab_padding, "origin": origin, "iteration": iteration}
    settings["uneven"] = _uneven(decoder_first_pipeline_num_layers, decoder_last_pipeline_num_layers)
    settings["emit"] = emit
    options = {"format": format, "dtype": dtype, "overwrite": overwrite, "resume": resume, **settings}
    run_plan(_plan(checkpoint, where, show=show, **options), "hf2meg", show=show, allow_nonfinite=allow_nonfinite)


@one_voice
def reshard(
    checkpoint: o.Checkpoint = None,
    *,
    out: o.Root = None,
    tp: int | None = None,
    pp: int | None = None,
    vpp: o.Chunks = 1,
    decoder_first_pipeline_num_layers: o.FirstStage = None,
    decoder_last_pipeline_num_layers: o.LastStage = None,
    format: o.MegatronFormat | None = None,
    to_dialect: o.ToDialect = None,
    dtype: o.Cast = None,
    make_vocab_size_divisible_by: o.Multiple = None,
    vocab_padding: o.Padding = "zeros",
    iteration: o.Iteration = None,
    vocab_size: o.VocabSize = None,
    dialect: o.Dialect = None,
    config: o.Config = None,
    emit: o.Emit = None,
    overwrite: o.Overwrite = False,
    resume: o.Resume = False,
    allow_nonfinite: o.AllowNonfinite = False,
    ignoring: o.Ignores = o.IGNORING,
    show: o.Shown = o.SHOW,
) -> None:
    """Rewrite a Megatron checkpoint for another layout or in another format. Optimizer state is left out.

    Parameters
    ----------
    tp
        Tensor-parallel size. Default: the checkpoint's.
    pp
        Pipeline-parallel size. Default: the checkpoint's.
    format
        torch_dist or mp_rank. Default: the checkpoint's format.
    to_dialect
        The program to write an mp_rank checkpoint for: its tensor names and row order. Default: the checkpoint's.
    """
    found = _open(choose.megatron(checkpoint, "reshard"), iteration, vocab_size, dialect, config, ignoring)
    from mconv.shard.stages import EVEN

    layout = found.layout
    assert layout is not None
    settings: dict[str, Any] = {"tp": layout.tp if tp is None else tp, "pp": layout.pp if pp is None else pp, "vpp": vpp}
    settings["vocab_multiple"] = make_vocab_size_divisible_by
    stages = _uneven(decoder_first_pipeline_num_layers, decoder_last_pipeline_num_layers)
    as_it_is = stages == EVEN and pp in (None, layout.pp) and vpp == layout.vpp
    settings["uneven"] = layout.uneven if as_it_is else stages
    kind = format or found.format
    names = to_dialect or (found.dialect if kind == "mp_rank" else "mcore")
    sizes = {name: settings[name] for name in ("tp", "pp", "vpp")}
    where = out or _root(found, format=kind, dialect=names, dtype=dtype, **sizes)
    settings |= {"dialect": names, "vocab_padding": vocab_padding, "dtype": dtype, "emit": emit}
    plan = _plan(found, where, show=show, format=kind, overwrite=overwrite, resume=resume, **settings)
    run_plan(plan, "reshard", show=show, allow_nonfinite=allow_nonfinite)


@one_voice
def merge(
    checkpoint: o.Checkpoint = None,
    *,
    out: o.Root = None,
    format: o.MegatronFormat | None = None,
    iteration: o.Iteration = None,
    vocab_size: o.VocabSize = None,
    dialect: o.Dialect = None,
    config: o.Config = None,
    overwrite: o.Overwrite = False,
    resume: o.Resume = False,
    ignoring: o.Ignores = o.IGNORING,
    show: o.Shown = o.SHOW,
) -> None:
    """Merge all ranks of a Megatron checkpoint into one: `reshard --tp 1 --pp 1`.

    Parameters
    ----------
    format
        torch_dist or mp_rank. Default: the checkpoint's format.
    """
    found = _open(choose.megatron(checkpoint, "merge"), iteration, vocab_size, dialect, config, ignoring)
    kind = format or found.format
    names = found.dialect if kind == "mp_rank" else "mcore"
    options = {"dialect": names, "dtype": None, "overwrite": overwrite, "resume": resume}
    where = out or _root(found, format=kind, dialect=names)
    plan = _plan(found, where, show=show, format=kind, **options)
    run_plan(plan, "merge", show=show, allow_nonfinite=False)


@one_voice
def meg2hf(
    checkpoint: o.Checkpoint = None,
    *,
    out: o.Folder = None,
    dtype: o.Cast = None,
    max_shard_size: float = 5.0,
    tokenizer: Path | None = None,
    iteration: o.Iteration = None,
    iterations: str | None = None,
    vocab_size: o.VocabSize = None,
    dialect: o.Dialect = None,
    config: o.Config = None,
    overwrite: o.Overwrite = False,
    resume: o.Resume = False,
    allow_nonfinite: o.AllowNonfinite = False,
    ignoring: o.Ignores = o.IGNORING,
    show: o.Shown = o.SHOW,
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
    if not 0 < max_shard_size < float("inf"):
        raise MconvError(f"--max-shard-size is {max_shard_size}; it must be a positive number of GB")
    settings = {"shard_bytes": max(1, int(max_shard_size * 1e9)), "side_folder": tokenizer and o.side_folder(tokenizer)}
    said = {"vocab_size": vocab_size, "dialect": dialect, "config": config}

    source = choose.megatron(checkpoint, "meg2hf")

    def export(iteration: int | None, where: Path | None, fingerprint: str | None = None) -> None:
        found = _open(source, iteration, ignoring=ignoring, **said)  # type: ignore[arg-type]
        where = where or Path(naming.hugging_face(choose.called(found), iteration=found.iteration, dtype=dtype))
        options = {**settings, "dtype": dtype, "overwrite": overwrite, "resume": resume, "fingerprint": fingerprint}
        plan = _plan(found, where, show=show, format="hf", **options)
        run_plan(plan, "meg2hf", show=show, allow_nonfinite=allow_nonfinite, hint=fingerprint is None)

    if iterations is None:
        export(iteration, out)
        return
    if iteration is not None:
        raise MconvError("give --iteration or --iterations, not both")
    where = out or Path(naming.hugging_face(choose.called_path(source), dtype=dtype))
    asked: dict[str, Any] = {"dtype": dtype, **settings, "vocab_size": vocab_size, "dialect": dialect, "config": config}
    _each(source, iterations, where, export, asked=asked | {"ignore": ignoring.names})


def _each(root: Path, word: str, out: Path, export: "Export", *, asked: dict[str, Any]) -> None:
    """Export each iteration that `word` means, but those that are there; raise at the end for those that failed."""
    from mconv.convert import iterations

    failed = []
    for number in iterations.wanted(root, word):
        name = f"iter_{number:07d}"
        mark = iterations.mark(root / name, **asked)
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
    """What to call the model, the folder that it is in, and the repository that it is from (None for a folder)."""
    from mconv.hub import fetch

    named = source or model
    if named is None:
        raise MconvError("give a model: `mconv hf2meg llama2 --size 7`, `mconv hf2meg FOLDER`, or `--from FOLDER`")
    if Path(named).expanduser().is_file():
        o.checkpoint(Path(named).expanduser())
    local = Path(named).expanduser().is_dir()
    picked = size if not source or fetch.is_family(source) else None
    folder = fetch.resolve(named, size=picked, cache_dir=cache_dir, offline=offline, tell=_tell_of_the_rest)
    called = folder.resolve().name if local else Path(named).name
    return model or called, folder, None if local else fetch.repository(named, size=picked)


def _tell_of_the_rest(left_out: "Sequence[LeftOut]") -> None:
    """Say what of a repository was not fetched."""
    from mconv.convert.sidecar import note

    if behind := note(left_out):
        print(f"note: {behind}", file=sys.stderr)


def _open(
    path: Path,
    iteration: int | None,
    vocab_size: int | None,
    dialect: str | None,
    config: Path | None,
    ignoring: o.Ignoring,
) -> "Checkpoint":
    """Return a Megatron checkpoint, opened with what the user says of it."""
    _check_kind(path, hf=False)
    path = o.checkpoint(path, iteration)
    from mconv.convert.opening import open_checkpoint

    said = {"iteration": iteration, "vocab_size": vocab_size, "dialect": dialect, "config": config}
    return open_checkpoint(path, ignore=ignoring.names, **said)  # type: ignore[arg-type]


def _root(found: "Checkpoint", **kind: Any) -> Path:
    """What to call a Megatron root that is made of a checkpoint, where nobody says: not what that is called already."""
    name = naming.megatron(choose.called(found), iteration=found.iteration, **kind)
    if Path(name).resolve() == choose.root_of(found.path).resolve():
        raise MconvError(
            f"what would be made is called {name}, as the checkpoint is already; ask for another layout, or give --out"
        )
    return Path(name)


def _check_kind(path: Path, *, hf: bool) -> None:
    """Refuse a Megatron checkpoint where a Hugging Face model is wanted, and the reverse; name the command for it."""
    from mconv.convert.recognize import what_is

    found = what_is(path)
    if hf and found.kind in ("megatron", "torch_dist", "mp_rank"):
        raise MconvError(
            f"{path} is {found.text} already; `mconv reshard {path}` changes its layout, `mconv meg2hf {path}` exports it"
        )
    if not hf and found.kind in ("hf", "meta", "mistral"):
        raise MconvError(f"{path} is {found.text}, not a Megatron checkpoint; `mconv hf2meg {path}` makes one of it")


def _uneven(first: int | None, last: int | None) -> "Uneven":
    from mconv.shard.stages import Uneven

    return Uneven(first=first, last=last)


def _plan(checkpoint: "Checkpoint", out: Path, *, show: o.Show, **options: Any) -> "Plan":
    from mconv.convert.engine import plan

    return plan.make(checkpoint, out, check_room=not show.dry_run, **options)


def run_plan(plan: "Plan", step: str, *, show: o.Show, allow_nonfinite: bool, hint: bool = True) -> None:
    """Carry out the plan, or show it; `hint` adds what a user would type next."""
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

    with joined() as ranks, progress(plan.nbytes, f"{step} {plan.model.name}") as advance:
        try:
            rewrite(plan, step=step, allow_nonfinite=allow_nonfinite, progress=advance, ranks=ranks, command=command())
        except KeyboardInterrupt:
            print("what is written so far is kept: the same command with --resume completes it", file=sys.stderr)
            raise
