"""`mconv inspect`: shows what a checkpoint or token data is."""

import json as jsonlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mconv.cli import facts as in_words
from mconv.cli import located
from mconv.cli import options as o
from mconv.cli.terminal import dtype_name

if TYPE_CHECKING:
    from mconv.convert.checkpoint.adapted import Run
    from mconv.convert.checkpoint.model import Checkpoint
    from mconv.convert.spelling.table import Stored
    from mconv.shard.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """Options on another layout to show, and on the file to draw it in."""

    tp: Annotated[
        int | None, Parameter(help="Preview another layout: its tensor-parallel size. Default: the checkpoint's.")
    ] = None
    pp: Annotated[int | None, Parameter(help="Preview another layout: its pipeline-parallel size.")] = None
    vpp: Annotated[int | None, Parameter(help="Preview another layout: its model chunks on each pipeline rank.")] = None
    plot: Annotated[
        Path | None, Parameter(help="Draw which rank holds which slice: a .png, .svg, .pdf or .html file.")
    ] = None


AS_IT_IS = Preview()


def inspect(
    path: Path,
    *,
    json: o.Json = False,
    tensors: o.Flag = False,
    layout: Annotated[Preview, o.Group] = AS_IT_IS,
    reading: o.ReadingGroup = o.READING,
    params: o.ParamsGroup = o.PARAMS,
) -> None:
    """Show what a checkpoint or token data is.

    For a checkpoint: format, dialect, layout, architecture, parameters, dtype, optimizer state. For token data
    (PREFIX.bin and PREFIX.idx): documents, tokens, lengths, ids, how documents end, the tokenizer; long data is sampled.

    Parameters
    ----------
    path
        A Hugging Face folder, a folder with Meta's or Mistral's own files, a Megatron root, the folder of one iteration,
        a repository ORG/NAME in the Hub's cache, a PEFT adapter; or token data: its prefix, its .bin or .idx file, or a
        folder of several.
    tensors
        List every stored tensor, and the tensor of the model that it is a part of.
    """
    if prefixes := _data(path):
        _show_data(prefixes, json=json)
        return
    path = located.checkpoint(path, reading.iteration)
    from mconv.convert.checkpoint.open import is_lora_run
    from mconv.convert.peft import facts as peft_facts
    from mconv.convert.peft import folder as peft

    if path.is_dir() and peft.is_adapter(path):
        _show(peft_facts.facts(path), in_words.of_adapter, json=json)
        return
    if is_lora_run(path, reading.iteration):
        from mconv.convert.checkpoint import adapted

        _show(_facts_of_run(adapted.open_run(path, reading.iteration)), in_words.of_lora_run, json=json)
        return
    found = reading.open(path, **params.values)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    facts = facts_of(found)
    if tensors:
        facts["tensors"] = [_tensor(found, stored) for stored in found.stored]
    facts |= _drawn(found, layout)
    _show(facts, in_words.of_checkpoint, json=json)


def _data(path: Path) -> list[Path]:
    """Return the prefixes of token data at a path: one, or all in a folder that holds nothing else."""
    from mconv.convert.folders.recognize import what_is

    if path.is_dir() and what_is(path).kind != "data":  # before an import
        return []
    from mconv.train.data import facts

    if path.is_dir():
        return facts.prefixes_of(path)
    prefix = facts.prefix_of(path)
    return [prefix] if prefix else []


def _show_data(prefixes: list[Path], *, json: bool) -> None:
    from mconv.train.data.facts import facts

    found = [facts(prefix) for prefix in prefixes]
    if json:
        print(jsonlib.dumps(found[0] if len(found) == 1 else found, indent=1))
    else:
        print("\n\n".join("\n".join(in_words.of_data(one)) for one in found))


def _show(facts: dict[str, Any], worded: Callable[[dict[str, Any]], Iterator[str]], *, json: bool) -> None:
    """Print facts as one JSON object, or in words."""
    print(jsonlib.dumps(facts, indent=1) if json else "\n".join(worded(facts)))


def _tensor(found: "Checkpoint", stored: "Stored") -> dict[str, Any]:
    where = found.located[stored.key]
    dtype = dtype_name(where.dtype)
    return {"key": stored.key, "logical": str(stored.logical), "shape": list(where.shape), "dtype": dtype}


def _drawn(found: "Checkpoint", asked: Preview) -> dict[str, Any]:
    """Return the preview of another layout and the path of the picture, if asked for."""
    preview = any(n is not None for n in (asked.tp, asked.pp, asked.vpp))
    if not (preview or asked.plot):
        return {}
    from mconv.cli import picture

    facts: dict[str, Any] = {}
    layout = _preview(found, asked) if preview or found.layout is None else found.layout
    if preview:
        sizes = {"tp": layout.tp, "pp": layout.pp, "vpp": layout.vpp, "padded_vocab": layout.padded_vocab}
        facts["preview"] = {**sizes, "bytes_per_rank": picture.per_rank(found, layout)}
    if asked.plot:
        picture.draw(found, layout, asked.plot)
        facts["plot"] = str(asked.plot)
    return facts


def _preview(c: "Checkpoint", asked: Preview) -> "Layout":
    """Return the layout asked for; sizes that were not given are the checkpoint's."""
    from mconv.convert.checkpoint.model import target_layout

    own = c.layout
    tp = getattr(own, "tp", 1) if asked.tp is None else asked.tp
    pp = getattr(own, "pp", 1) if asked.pp is None else asked.pp
    vpp = asked.vpp if asked.vpp is not None else own.vpp if own and asked.pp in (None, own.pp) else 1
    return target_layout(c.spec, c.family, tp=tp, pp=pp, vpp=vpp, dialect=c.dialect or "mcore")


def _facts_of_run(run: "Run") -> dict[str, Any]:
    """Return the facts on a LoRA run's checkpoint: the adapter that it holds, its base, its training."""
    from mconv.convert.checkpoint import training_state
    from mconv.convert.formats import torch_dist

    _, common = torch_dist.open_folder(run.folder)
    settings, factors = run.adapter.settings, run.adapter.factors
    return {
        "path": str(run.folder), "holds": "a LoRA adapter", "family": run.adapter.family.name,
        "rank": settings.rank, "alpha": settings.alpha, "targets": ", ".join(settings.targets),
        "parameters": sum(factor.numel() for factor in factors.values()),
        "dtype": dtype_name(next(iter(factors.values())).dtype), "base": run.base["name"],
        "base_path": run.base["path"], "base_digest": run.base["digest"],
        "training": training_state.facts(run.folder, "torch_dist", common),
    }  # fmt: skip


def facts_of(c: "Checkpoint") -> dict[str, Any]:
    """Return the facts on a checkpoint in JSON values."""
    from mconv.convert.checkpoint import training_state
    from mconv.convert.folders.recognize import what_is

    layout = c.layout
    return {
        "path": str(c.path),
        "what": what_is(c.path).text,
        "format": c.format,
        "dialect": c.dialect,
        "iteration": c.iteration,
        "layout": {"tp": layout.tp, "pp": layout.pp, "vpp": layout.vpp} if layout else None,
        "family": c.family.name,
        "spec": c.spec.to_dict(),
        "vocab": {"true": c.spec.vocab_size, "padded": layout.padded_vocab if layout else c.spec.vocab_size},
        "parameters": c.parameters,
        "bytes": sum(w.nbytes for w in c.located.values()),
        "dtype": dtype_name(c.dtype) if len(c.dtypes) == 1 else sorted(map(dtype_name, c.dtypes)),
        "stored_tensors": len(c.stored),
        "side_files": list(c.side_files),
        "notes": list(c.notes),
        "ignored": [f"{name} = {value}" for passed in c.ignored.values() for name, value in passed.items()],
        "left_out": [f"{item.name} ({item.why})" for item in c.sidecars.left_out],
        "manifest": c.manifest is not None,
        "history": (c.manifest or {}).get("history", []),
        "training": training_state.facts(c.path, c.format, c.common),
    }
