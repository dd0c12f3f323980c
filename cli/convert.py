"""`hf2meg`, `reshard`, `merge`, `meg2hf`: one engine under four verbs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.filesize import decimal

from mconv.cli.terminal import dtype_name, progress
from mconv.errors import ConfigError, MconvError

if TYPE_CHECKING:
    from mconv.convert.checkpoint import Checkpoint
    from mconv.convert.plan import Plan

Dtype = Literal["fp32", "bf16", "fp16"]
MegatronFormat = Literal["torch_dist", "mp_rank"]
Flag = Annotated[bool, Parameter(negative=())]


def hf2meg(
    model: str | None = None,
    *,
    size: str | None = None,
    source: Annotated[str | None, Parameter(name="--from")] = None,
    out: Path | None = None,
    tp: int = 1,
    pp: int = 1,
    vpp: int = 1,
    format: MegatronFormat = "torch_dist",
    dtype: Dtype | None = None,
    make_vocab_size_divisible_by: int = 128,
    overwrite: Flag = False,
    allow_nonfinite: Flag = False,
    dry_run: Flag = False,
    offline: Flag = False,
    cache_dir: Path | None = None,
) -> None:
    """Convert a Hugging Face checkpoint to Megatron.

    Parameters
    ----------
    model
        A family name (llama2, codellama, llama3.1, ... with --size), a folder, or a repository ORG/NAME.
    size
        Billions of parameters: picks the family's repository, and is checked against its config.
    source
        Take the weights from this folder or repository instead of the one that MODEL names.
    out
        The Megatron root to make. Default: the model's name with -megatron.
    tp
        Tensor-parallel size.
    pp
        Pipeline-parallel size.
    vpp
        Model chunks on each pipeline stage (interleaved schedule; mp_rank numbers layers by it).
    format
        torch_dist loads at any layout; mp_rank is Megatron's older format, one file a rank.
    dtype
        Cast the weights. Default: every tensor keeps its own dtype, bit for bit.
    make_vocab_size_divisible_by
        The vocabulary is padded with zero rows to a multiple of this times tp.
    overwrite
        Replace a checkpoint that is already there.
    allow_nonfinite
        Convert weights that hold NaN or infinity.
    dry_run
        Print the plan and write nothing.
    offline
        Never ask the Hub: the local cache or nothing.
    cache_dir
        The Hugging Face cache to look in.
    """
    from mconv.convert.checkpoint import open_checkpoint
    from mconv.hub import fetch

    named = source or model
    if named is None:
        raise MconvError("give a model: `mconv hf2meg llama2 --size 7`, `mconv hf2meg FOLDER`, or `--from FOLDER`")
    folder = fetch.resolve(named, size=None if source else size, cache_dir=cache_dir, offline=offline)
    checkpoint = _expect(open_checkpoint(folder), hf=True)
    if size is not None:
        _check_size(checkpoint, model, size)
    name = model or folder.name
    where = out or Path(f"{Path(name).name}{f'-{size}b' if size else ''}-megatron")
    origin = None if Path(named).is_dir() else fetch.repository(named, size=None if source else size)
    options = {"tp": tp, "pp": pp, "vpp": vpp, "vocab_multiple": make_vocab_size_divisible_by, "origin": origin}
    plan = _plan(checkpoint, where, format=format, dtype=dtype, overwrite=overwrite, **options)
    if _run(plan, "hf2meg", allow_nonfinite=allow_nonfinite, dry_run=dry_run):
        _print_flags(plan)


def reshard(
    checkpoint: Path,
    *,
    out: Path,
    tp: int | None = None,
    pp: int | None = None,
    vpp: int = 1,
    format: MegatronFormat | None = None,
    dtype: Dtype | None = None,
    make_vocab_size_divisible_by: int = 128,
    iteration: int | None = None,
    vocab_size: int | None = None,
    overwrite: Flag = False,
    allow_nonfinite: Flag = False,
    dry_run: Flag = False,
) -> None:
    """Rewrite a Megatron checkpoint for another layout or in another format. Optimizer state is not carried over.

    Parameters
    ----------
    checkpoint
        A Megatron root, or the folder of one iteration.
    out
        The Megatron root to make.
    tp
        Tensor-parallel size. Default: as it is.
    pp
        Pipeline-parallel size. Default: as it is.
    vpp
        Model chunks on each pipeline stage.
    format
        Default: the format that it has.
    dtype
        Cast the weights. Default: every tensor keeps its own dtype.
    make_vocab_size_divisible_by
        The vocabulary is padded with zero rows to a multiple of this times tp.
    iteration
        Which iteration. Default: the one that the tracker names.
    vocab_size
        The true vocabulary size, for checkpoints that do not know it.
    overwrite
        Replace a checkpoint that is already there.
    allow_nonfinite
        Convert weights that hold NaN or infinity.
    dry_run
        Print the plan and write nothing.
    """
    from mconv.convert.checkpoint import open_checkpoint

    found = _expect(open_checkpoint(checkpoint, iteration=iteration, vocab_size=vocab_size), hf=False)
    layout = found.layout
    assert layout is not None
    plan = _plan(
        found,
        out,
        format=format or found.format,
        dtype=dtype,
        overwrite=overwrite,
        tp=layout.tp if tp is None else tp,
        pp=layout.pp if pp is None else pp,
        vpp=vpp,
        vocab_multiple=make_vocab_size_divisible_by,
    )
    if _run(plan, "reshard", allow_nonfinite=allow_nonfinite, dry_run=dry_run):
        _print_flags(plan)


def merge(
    checkpoint: Path,
    *,
    out: Path,
    format: MegatronFormat | None = None,
    iteration: int | None = None,
    vocab_size: int | None = None,
    overwrite: Flag = False,
    dry_run: Flag = False,
) -> None:
    """Merge all ranks of a Megatron checkpoint into one: `reshard --tp 1 --pp 1`.

    Parameters
    ----------
    checkpoint
        A Megatron root, or the folder of one iteration.
    out
        The Megatron root to make.
    format
        Default: the format that it has.
    iteration
        Which iteration. Default: the one that the tracker names.
    vocab_size
        The true vocabulary size, for checkpoints that do not know it.
    overwrite
        Replace a checkpoint that is already there.
    dry_run
        Print the plan and write nothing.
    """
    from mconv.convert.checkpoint import open_checkpoint

    found = _expect(open_checkpoint(checkpoint, iteration=iteration, vocab_size=vocab_size), hf=False)
    plan = _plan(found, out, format=format or found.format, dtype=None, overwrite=overwrite)
    _run(plan, "merge", allow_nonfinite=False, dry_run=dry_run)


def meg2hf(
    checkpoint: Path,
    *,
    out: Path,
    dtype: Dtype | None = None,
    max_shard_size: float = 5.0,
    tokenizer: Path | None = None,
    iteration: int | None = None,
    vocab_size: int | None = None,
    overwrite: Flag = False,
    allow_nonfinite: Flag = False,
    dry_run: Flag = False,
) -> None:
    """Convert a Megatron checkpoint, at whatever layout, to a Hugging Face folder.

    Parameters
    ----------
    checkpoint
        A Megatron root, or the folder of one iteration.
    out
        The folder to make.
    dtype
        Cast the weights. Default: every tensor keeps its own dtype, bit for bit.
    max_shard_size
        Largest safetensors file, in GB.
    tokenizer
        A folder whose tokenizer and generation files go with the model, where the checkpoint has none of its own.
    iteration
        Which iteration. Default: the one that the tracker names.
    vocab_size
        The true vocabulary size, for checkpoints that do not know it.
    overwrite
        Replace a model that is already there.
    allow_nonfinite
        Convert weights that hold NaN or infinity.
    dry_run
        Print the plan and write nothing.
    """
    from mconv.convert.checkpoint import open_checkpoint

    found = _expect(open_checkpoint(checkpoint, iteration=iteration, vocab_size=vocab_size), hf=False)
    if not 0 < max_shard_size < float("inf"):
        raise MconvError(f"--max-shard-size is {max_shard_size}; it must be a positive number of GB")
    shard_bytes = max(1, int(max_shard_size * 1e9))
    plan = _plan(
        found, out, format="hf", dtype=dtype, overwrite=overwrite, shard_bytes=shard_bytes, side_folder=tokenizer
    )
    _run(plan, "meg2hf", allow_nonfinite=allow_nonfinite, dry_run=dry_run)


# ---- shared ----------------------------------------------------------------------------------------------------------
def _expect(checkpoint: "Checkpoint", *, hf: bool) -> "Checkpoint":
    if (checkpoint.format == "hf") != hf:
        verb = "`mconv hf2meg`" if checkpoint.format == "hf" else "`mconv reshard` or `mconv meg2hf`"
        raise MconvError(f"{checkpoint.path} is a {checkpoint.format} checkpoint; use {verb}")
    return checkpoint


def _check_size(checkpoint: "Checkpoint", model: str | None, size: str) -> None:
    """The size is never what decides the architecture, but a size that contradicts it is somebody's mistake."""
    try:
        said = float(size.lower().removesuffix("b"))
    except ValueError:
        raise MconvError(f"--size {size} is not a number of billions") from None
    found = checkpoint.parameters / 1e9
    if not 0.7 * said <= found <= 1.3 * said:
        raise ConfigError(f"--size {size} of {model}: but {checkpoint.path} has {found:.2f} billion parameters")


def _plan(checkpoint: "Checkpoint", out: Path, **options: Any) -> "Plan":
    from mconv.convert import plan

    return plan.make(checkpoint, out, **options)


def _run(plan: "Plan", step: str, *, allow_nonfinite: bool, dry_run: bool) -> bool:
    """Carry out the plan, or print it. True if something was written."""
    from mconv.convert.rewrite import rewrite

    if dry_run:
        _print_plan(plan)
        return False
    with progress(2 * plan.nbytes) as advance:
        rewrite(plan, step=step, allow_nonfinite=allow_nonfinite, progress=advance)
    dtype = dtype_name(plan.final_dtype)
    print(f"{plan.out}: {plan.format}{_layout(plan)}, {len(plan.targets)} tensors, {decimal(plan.nbytes)}, {dtype}")
    return True


def _layout(plan: "Plan") -> str:
    layout = plan.layout
    return "" if layout is None else f" tp {layout.tp} x pp {layout.pp}" + (f" x vpp {layout.vpp}" * (layout.vpp > 1))


def _print_plan(plan: "Plan") -> None:
    print(f"{plan.source.path} ({plan.source.format}) -> {plan.folder} ({plan.format}{_layout(plan)})")
    peak = decimal(plan.peak_bytes)
    print(f"{len(plan.targets)} tensors, {decimal(plan.nbytes)}, peak memory about {peak}; nothing was written")
    for target in plan.targets:
        print(f"  {target.key}  {tuple(target.shape)}  {dtype_name(target.dtype)}")


def _print_flags(plan: "Plan") -> None:
    from mconv.convert.dialects import mcore

    if plan.layout is None:
        return
    flags, warnings = mcore.flags(plan.source.spec, plan.layout, load=str(plan.out))
    print("Megatron-LM: " + " ".join(flags))
    for warning in warnings:
        print(f"warning: no Megatron-LM flag is right for this model: {warning}", file=sys.stderr)
