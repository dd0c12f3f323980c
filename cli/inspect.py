"""`mconv inspect`: what a checkpoint is."""

import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from mconv.cli import options as o
from mconv.cli.terminal import dtype_name

if TYPE_CHECKING:
    from mconv.convert.adapted import Run
    from mconv.convert.checkpoint import Checkpoint
    from mconv.shard.layout import Layout


def inspect(
    path: Path,
    *,
    iteration: o.Iteration = None,
    vocab_size: o.VocabSize = None,
    dialect: o.Dialect = None,
    config: o.Config = None,
    json: o.Json = False,
    tensors: o.Flag = False,
    tp: int | None = None,
    pp: int | None = None,
    vpp: int | None = None,
    plot: Path | None = None,
    max_position_embeddings: int | None = None,
    rope_factor: float | None = None,
    ignoring: o.Ignores = o.IGNORING,
) -> None:
    """Say what a checkpoint is: format, dialect, layout, architecture, parameters, bytes, dtype.

    Parameters
    ----------
    path
        A Hugging Face folder, one in Meta's or Mistral's own files, a Megatron root, the folder of one iteration, or a
        repository ORG/NAME of the Hub's cache.
    tensors
        List every stored tensor, and the tensor of the model that it is a part of.
    tp
        Preview another layout: its tensor-parallel size. Default: the checkpoint's.
    pp
        Preview another layout: its pipeline-parallel size.
    vpp
        Preview another layout: its model chunks on each pipeline rank.
    plot
        Draw which rank holds which slice: a .png, .svg, .pdf or .html file.
    max_position_embeddings
        The model's context length, which Meta's params.json does not say.
    rope_factor
        The factor of Llama 3's rope scaling, where Meta's params.json sets use_scaled_rope without a factor.
    """
    path = o.checkpoint(path, iteration)
    from mconv.convert import adapted, peft
    from mconv.convert.opening import open_checkpoint

    if path.is_dir() and peft.is_adapter(path):
        _show_adapter(path, json=json)
        return
    if adapted.is_run(path, iteration):
        facts = _facts_of_run(adapted.open_run(path, iteration))
        print(jsonlib.dumps(facts, indent=1) if json else "\n".join(f"{k:<24} {v}" for k, v in facts.items()))
        return
    found = open_checkpoint(
        path, iteration=iteration, vocab_size=vocab_size, dialect=dialect, config=config, ignore=ignoring.names,
        max_position_embeddings=max_position_embeddings, rope_factor=rope_factor,
    )  # fmt: skip
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    facts = facts_of(found)
    if tensors:
        facts["tensors"] = [
            {
                "key": s.key,
                "logical": str(s.logical),
                "shape": list(found.located[s.key].shape),
                "dtype": dtype_name(found.located[s.key].dtype),
            }
            for s in found.stored
        ]
    preview = any(n is not None for n in (tp, pp, vpp))
    if preview or plot:
        from mconv.cli import picture

        layout = _preview(found, tp=tp, pp=pp, vpp=vpp) if preview or found.layout is None else found.layout
        if preview:
            sizes = {"tp": layout.tp, "pp": layout.pp, "vpp": layout.vpp, "padded_vocab": layout.padded_vocab}
            facts["preview"] = {**sizes, "bytes_per_rank": picture.per_rank(found, layout)}
        if plot:
            picture.draw(found, layout, plot)
            facts["plot"] = str(plot)
    if json:
        print(jsonlib.dumps(facts, indent=1))
    else:
        _print_facts(facts)


def _preview(c: "Checkpoint", *, tp: int | None, pp: int | None, vpp: int | None) -> "Layout":
    """The layout asked for; what is not said is as the checkpoint has it."""
    from mconv.convert.checkpoint import target_layout

    own = c.layout
    sizes = [asked if asked is not None else getattr(own, name, 1) for name, asked in (("tp", tp), ("pp", pp))]
    chunks = vpp if vpp is not None else own.vpp if own and pp in (None, own.pp) else 1
    return target_layout(c.spec, c.family, tp=sizes[0], pp=sizes[1], vpp=chunks, dialect=c.dialect or "mcore")


def _show_adapter(folder: Path, *, json: bool) -> None:
    """Print what a PEFT adapter's folder is, and what stands in the way of merging it."""
    from mconv.convert.peft_facts import facts

    found = facts(folder)
    if json:
        print(jsonlib.dumps(found, indent=1))
        return
    shown = {**found, "bytes": decimal(found["bytes"]), "parameters": f"{found['parameters']:,}"}
    for key, value in shown.items():
        for one in value if key == "problems" else [", ".join(map(str, value)) if isinstance(value, list) else value]:
            print(f"{key:<24} {one}")


def _facts_of_run(run: "Run") -> dict[str, Any]:
    """Of a LoRA run's checkpoint: the adapter that it holds, and what lies beneath."""
    settings, factors = run.adapter.settings, run.adapter.factors
    return {
        "path": str(run.folder), "holds": "a LoRA adapter", "family": run.adapter.family.name,
        "rank": settings.rank, "alpha": settings.alpha, "targets": ", ".join(settings.targets),
        "parameters": sum(factor.numel() for factor in factors.values()),
        "dtype": dtype_name(next(iter(factors.values())).dtype), "base": run.base["name"],
        "base_path": run.base["path"], "base_digest": run.base["digest"],
    }  # fmt: skip


def facts_of(c: "Checkpoint") -> dict[str, Any]:
    from mconv.convert.recognize import what_is

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
        "left_out": [f"{item.name} ({item.why})" for item in c.beside.left_out],
        "manifest": c.manifest is not None,
        "history": (c.manifest or {}).get("history", []),
    }


def _print_facts(facts: dict[str, Any]) -> None:
    shown = {**facts, **facts["spec"], "bytes": decimal(facts["bytes"]), "parameters": f"{facts['parameters']:,}"}
    shown["history"] = " -> ".join(step["step"] for step in facts["history"]) or "none recorded"
    for key, value in shown.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        if key not in ("tensors", "spec"):
            print(f"{key:<24} {', '.join(value) if isinstance(value, list) else value}")
    for t in facts.get("tensors", []):
        print(f"{t['key']}  {tuple(t['shape'])}  {t['dtype']}  {t['logical']}")
