"""`mconv lora`: the adapter of a LoRA run, exported to PEFT or merged into its base."""

import math
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mconv.cli import choose, located
from mconv.cli import options as o
from mconv.cli.terminal import progress
from mconv.convert.folders import naming
from mconv.errors import MconvError


def export(
    run: Path | None = None,
    *,
    out: Path | None = None,
    base: Annotated[str | None, Parameter(name=("--base-model", "--base"))] = None,
    iteration: o.Iteration = None,
) -> None:
    """Export the adapter of a LoRA run in PEFT's format: adapter_config.json and adapter_model.safetensors.

    Parameters
    ----------
    run
        A LoRA run: its --save folder, or one iteration in it. Default: the newest in the current folder.
    out
        The folder to make. Default: the run's name and iteration, NAME-iter_500-adapter.
    base
        Name of the base model in adapter_config.json: ORG/NAME on the Hub, or a Hugging Face folder. Default: the model
        that the run's base was converted from, its name on the Hub if it came from there.
    """
    run = located.checkpoint(run or choose.newest("lora export", "LoRA run").path, iteration)
    from mconv.convert.checkpoint import adapted, base_name

    found = adapted.open_run(run, iteration)
    named = base or base_name.of_run(found.folder, found.base)
    where = found.folder
    own = naming.adapter(choose.called_path(where), iteration=choose.iteration_of(where))
    out = located.unused(out or Path(own))
    from mconv.convert.checkpoint import adapter_folder as peft_adapter

    peft_adapter.write(found.adapter, out, base=named)
    adapted.describe(found, out, base=named)
    print(f"{out}: {found.adapter.settings}; base {named}")
    choose.next_command("push", out)


def merge(
    adapter: Path | None = None,
    *more: Path,
    weights: str | None = None,
    out: Path | None = None,
    base: Path | None = None,
    form: o.FormGroup = o.FORM,
    dtype: o.Cast = None,
    iteration: o.Iteration = None,
    overwrite: o.Overwrite = False,
    ignoring: o.IgnoringGroup = o.IGNORING,
    show: o.ShowGroup = o.SHOW,
) -> None:
    """Merge an adapter, or the weighted sum of several, into its base: W + scale B A, in fp64 and rounded once.

    Parameters
    ----------
    adapter
        A LoRA run (its --save folder, or one iteration in it) or a PEFT adapter. Default: the newest in the current
        folder.
    more
        Further adapters of the same base, to be merged with the first one.
    weights
        A weight for each adapter, in their order: 0.7,0.3. Default: 1 for each.
    out
        The folder to make. Default: the (first) adapter's name, NAME-iter_500-merged-hf.
    base
        The base model, in any format. Default: the one that the adapter names. The adapter of a LoRA run accepts only
        the weights that it was trained on.
    """
    adapter = located.checkpoint(adapter or choose.newest("lora merge", "adapter").path, iteration)
    every = [adapter, *(located.checkpoint(path) for path in more)]
    weighed = _weights(weights, count=len(every))
    base = located.checkpoint(base) if base else None
    from mconv.cli.conversion import run_plan
    from mconv.convert.checkpoint import adapted
    from mconv.convert.engine import plan

    out = out or Path(_name(adapter, iteration, form, dtype))
    with progress(0, f"reading the base of {adapter}") as advance:
        found = adapted.with_several(every, weighed, base, iteration=iteration, ignore=ignoring.names, progress=advance)
    origin = f"{found.name} with {' and '.join(path.name for path in every)}"
    made = plan.make(
        found, out, dtype=dtype, overwrite=overwrite, origin=origin, check_room=not show.dry_run, **form.values,
    )  # fmt: skip
    run_plan(made, "lora merge", show=show, allow_nonfinite=False)


def _weights(text: str | None, *, count: int) -> list[float]:
    """Return the weights in a text of numbers, 0.7,0.3; 1 for each adapter if there is none. Raises MconvError."""
    try:
        found = [float(word) for word in text.split(",")] if text is not None else [1.0] * count
    except ValueError:
        raise MconvError(f"--weights {text}: give a number for each adapter, 0.7,0.3") from None
    if len(found) != count or not all(map(math.isfinite, found)):
        raise MconvError(f"--weights {text}: give one finite number for each of the {count} adapters, in their order")
    return found


def _name(adapter: Path, iteration: int | None, form: o.Form, dtype: str | None) -> str:
    """Return the default name of a merge."""
    from mconv.convert.checkpoint import open as opening
    from mconv.convert.peft import folder as peft

    if not peft.is_adapter(adapter) and adapter.is_dir():
        adapter = opening.iteration_folder(adapter, iteration)
    own = naming.merged(choose.called_path(adapter), iteration=choose.iteration_of(adapter))
    return naming.made(own, dtype=dtype, **form.layout)
