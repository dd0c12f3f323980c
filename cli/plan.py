"""A conversion's plan in words: source, target, cost, and the files that it writes."""

import json
import sys
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from mconv.cli.terminal import dtype_name

if TYPE_CHECKING:
    from mconv.convert.engine.files import Files
    from mconv.convert.engine.plan import Plan

SHOWN = 12
"""Number of files listed one by one; of more, only the first and the last few are."""


def lines(plan: "Plan", *, written: bool, tensors: bool) -> list[str]:
    """Return the plan, or its result, in words. Warnings about Megatron's flags go to stderr."""
    if written:
        out = [f"{plan.out}: {_target(plan)}, {len(plan.targets)} tensors, {decimal(plan.nbytes)}, {_dtype(plan)}"]
    else:
        out = [*_head(plan), *_tree(plan)]
    if tensors:
        out += [f"  {t.key}  {tuple(t.shape)}  {dtype_name(t.dtype)}" for t in plan.targets]
    flags, warnings = _flags(plan)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return out + ([flags] if flags else [])


def as_json(plan: "Plan", *, written: bool, tensors: bool) -> str:
    """Return the plan, or its result, as JSON."""
    from mconv.convert.engine import files

    layout, source = plan.layout, plan.model
    flags, warnings = _flags(plan)
    values: dict[str, Any] = {
        "written": written,
        "source": {"path": str(source.path), "format": source.format, "dialect": source.dialect},
        "spec": source.spec.to_dict(),
        "parameters": source.parameters,
        "target": str(plan.folder),
        "format": plan.format,
        "dialect": None if layout is None else plan.dialect,
        "layout": {"tp": layout.tp, "pp": layout.pp, "vpp": layout.vpp} if layout else None,
        "vocab": {"true": source.spec.vocab_size, "padded": layout.padded_vocab if layout else source.spec.vocab_size},
        "dtype": dtype_name(plan.final_dtype),
        "tensors": len(plan.targets),
        "bytes": plan.nbytes,
        "peak_bytes": plan.peak_bytes,
        "free_bytes": plan.free_bytes,
        "files": files.listing(plan),
        "flags": flags,
        "warnings": warnings,
    }
    if tensors:
        values["target_tensors"] = [
            {"key": t.key, "shape": list(t.shape), "dtype": dtype_name(t.dtype)} for t in plan.targets
        ]
    return json.dumps(values, indent=1)


def _head(plan: "Plan") -> list[str]:
    source = plan.model
    spec, layout = source.spec, source.layout
    dialect = f", {source.dialect}" if source.dialect else ""
    where = f" tp {layout.tp} x pp {layout.pp}" if layout else ""
    size = f"{source.parameters / 1e9:.2f} billion" if source.parameters >= 1e9 else f"{source.parameters:,}"
    facts = {
        "source": f"{source.path} ({source.format}{where}{dialect}, {dtype_name(source.dtype)})",
        "target": f"{plan.folder} ({_target(plan)}, {_dtype(plan)})",
        "model": f"{spec.family}, {spec.num_layers} layers x {spec.hidden_size}, {size} parameters",
        "tensors": f"{source.stored_tensors:,} -> {len(plan.targets):,}",
        "bytes": f"{decimal(plan.nbytes)}; {decimal(plan.free_bytes)} free",
        "peak memory": f"about {decimal(plan.peak_bytes)}",
    }
    if plan.layout and plan.layout.padded_vocab != spec.vocab_size:
        facts["vocabulary"] = f"{spec.vocab_size:,}, padded to {plan.layout.padded_vocab:,}"
    return [f"{name:<12} {text}" for name, text in facts.items()] + ["nothing was written; the target would be"]


def _target(plan: "Plan") -> str:
    layout, chunks = plan.layout, ""
    if layout is None:
        return plan.format
    if layout.vpp > 1:
        chunks = f" x vpp {layout.vpp}"
    return f"{plan.format} tp {layout.tp} x pp {layout.pp}{chunks}, {plan.dialect}"


def _dtype(plan: "Plan") -> str:
    return dtype_name(plan.final_dtype) + (f", cast from {dtype_name(plan.model.dtype)}" if plan.dtype else "")


def _tree(plan: "Plan") -> list[str]:
    """Return the target's files with their sizes, long runs of similar files shortened."""
    from mconv.convert.engine import files

    root = "" if plan.format == "hf" else f"{plan.folder.name}/"
    out, entered = [f"  {plan.out}/"], False
    for name, size in _shortened(files.listing(plan), root=root).items():
        inside = bool(root) and name.startswith(root)
        if inside and not entered:
            out.append(f"    {root}")
        entered = entered or inside
        text = f"      {name.removeprefix(root)}" if inside else f"    {name}"
        out.append(f"{text:<46} {'' if size is None else decimal(size):>9}".rstrip())
    return out


def _shortened(files: "Files", *, root: str) -> "Files":
    """Return the files, with one line in place of all but the first and last few weight files."""
    heavy = [name for name, size in files.items() if size is not None]
    hidden = heavy[4:-2] if len(heavy) > SHOWN else []
    out: Files = {}
    for name, size in files.items():
        if name not in hidden:
            out[name] = size
        elif name == hidden[0]:
            out[f"{root}... {len(hidden)} more"] = sum(files[one] or 0 for one in hidden)
    return out


def _flags(plan: "Plan") -> tuple[str, list[str]]:
    """Return the program's flags for the result in one line, and a warning for each setting that no flag expresses."""
    from mconv.convert.checkpoint import bridge
    from mconv.convert.dialects import DIALECTS
    from mconv.convert.dialects.flags import Case

    if plan.layout is None:
        return "", []
    dialect = DIALECTS[plan.dialect]
    case = Case(
        spec=plan.spec, layout=plan.layout, load=str(plan.out), dtype=dtype_name(plan.final_dtype),
        format=plan.format, numbered=plan.iteration is not None,
    )  # fmt: skip
    flags, warnings = dialect.flags(case)
    if plan.emit:
        warnings += bridge.warnings(plan.spec, plan.layout)
    return f"{dialect.program}: {' '.join(flags)}", warnings
