"""`mconv lora`: what a LoRA run has trained, as a PEFT adapter or merged into its base."""

from pathlib import Path
from typing import Literal

from mconv.cli import options as o
from mconv.cli.terminal import progress
from mconv.errors import MconvError


def export(run: o.Checkpoint, *, out: o.Folder, base: str | None = None, iteration: o.Iteration = None) -> None:
    """Write the adapter of a LoRA run as PEFT has it: adapter_config.json and adapter_model.safetensors.

    Parameters
    ----------
    base
        What the adapter is to call the model beneath it: a repository of the Hub, or a folder. Default: the folder that
        the run loaded.
    """
    from mconv.convert import adapted, peft

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MconvError(f"{out} exists and is not empty; name another folder")
    found = adapted.open_run(run, iteration)
    named = base or str((found.folder.parent / found.base["path"]).resolve())
    peft.write(found.adapter, out, base=named)
    print(f"{out}: {found.adapter.settings}; base {named}")


def merge(
    adapter: Path,
    *,
    out: o.Folder,
    base: Path | None = None,
    format: Literal["hf", "torch_dist", "mp_rank"] = "hf",
    tp: int = 1,
    pp: int = 1,
    make_vocab_size_divisible_by: o.Multiple = None,
    dtype: o.Cast = None,
    iteration: o.Iteration = None,
    overwrite: o.Overwrite = False,
    ignoring: o.Ignores = o.IGNORING,
    show: o.Shown = o.SHOW,
) -> None:
    """Merge an adapter into its base: W + scale B A, tensor by tensor, in fp64 and rounded once.

    Parameters
    ----------
    adapter
        A LoRA run's folder (or that of one iteration), or a PEFT adapter's.
    base
        The model beneath, in any format. Default: the one that the adapter names. A run's adapter knows its base's
        weights, and takes no other.
    format
        Of the result.
    tp
        Tensor-parallel size of the result.
    pp
        Pipeline-parallel size of the result.
    """
    from mconv.cli.convert import run_plan
    from mconv.convert import adapted, plan

    with progress(0, f"reading the base of {adapter}") as advance:
        found = adapted.with_base(adapter, base, iteration=iteration, ignore=ignoring.names, progress=advance)
    made = plan.make(
        found, out, format=format, tp=tp, pp=pp, vocab_multiple=make_vocab_size_divisible_by, dtype=dtype,
        overwrite=overwrite, origin=f"{found.name} with {adapter.name}", check_room=not show.dry_run,
    )  # fmt: skip
    run_plan(made, "lora merge", show=show, allow_nonfinite=False)
