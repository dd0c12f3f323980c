"""Problems of a planned conversion: its output, the files that travel with the model, the disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mconv.convert.dialects.bridge import refusals
from mconv.convert.folders import manifest, tokens
from mconv.convert.folders.kinds import TRACKER
from mconv.convert.folders.staging import Staging
from mconv.convert.formats.hf import read_json

if TYPE_CHECKING:
    from mconv.convert.engine.plan import Plan


def problems(plan: "Plan", *, check_room: bool) -> list[str]:
    """Return what stands against a plan, each in a sentence that says what to do."""
    found = [*_of_output(plan), *_of_side_files(plan)]
    target, parent = plan.out.resolve(), plan.standing
    if plan.out.is_symlink() and not plan.out.exists():
        found.append(f"{plan.out} is a broken link; remove it or name another folder")
    elif not parent.is_dir() and parent != target:
        found.append(f"{parent} is a file, so nothing can be written below it")
    elif check_room and (short := shortage(plan)):
        found.append(short)
    return found


def shortage(plan: "Plan") -> str | None:
    """Return why the disk is too small for the target, or None."""
    free = plan.free_bytes
    if free >= plan.nbytes * 1.01:
        return None
    return f"{plan.standing} has {free / 1e9:.1f} GB free; the checkpoint needs {plan.nbytes / 1e9:.1f} GB"


def _of_output(plan: "Plan") -> Iterator[str]:
    """Yield why the output cannot be made where it is wanted: the first reason alone."""
    out, at = plan.out, plan.model.path
    source, target = at.resolve(), out.resolve()
    if plan.format == "hf" and Path.cwd().is_relative_to(target):
        yield (
            f"--out {out} is the current working directory, which a conversion would replace; choose another directory"
        )
    elif source == target:
        yield f"--out {out} is the source itself; choose another folder"
    elif source.is_relative_to(target):
        yield f"--out {out} contains the source, {at}; choose another folder"
    elif target.is_relative_to(source):
        yield f"--out {out} is inside the source, {at}; choose another folder"
    elif out.is_file():
        yield f"--out {out} is a file; name a folder"
    elif _taken(plan) and not plan.overwrite:
        yield f"--out {out} exists and is not empty; give --overwrite to replace it, or name another folder"
    elif _taken(plan) and not _ours_to_replace(plan):
        yield f"--out {out} is not a checkpoint, so --overwrite will not replace it; remove it, or name another folder"


def _taken(plan: "Plan") -> bool:
    """Return whether something is where the output is to be; what an unfinished run found there was looked at then."""
    if not plan.out.exists() or (plan.resume and Staging.of(plan.folder).unfinished):
        return False
    return not plan.out.is_dir() or any(not path.name.startswith(".mconv-") for path in plan.out.iterdir())


def _of_side_files(plan: "Plan") -> Iterator[str]:
    """Yield what is wrong with a tokenizer, or why a program cannot have the model."""
    side_folder, spec = plan.side_folder, plan.spec
    if side_folder is not None and not side_folder.is_dir():
        yield f"{side_folder} is not a folder; --tokenizer takes a folder with tokenizer files"
        return
    if side_folder is not None and not tokens.makes_tokenizer(plan.given):
        yield (
            f"no tokenizer files in {side_folder} ({', '.join(tokens.VOCABULARY[:2])} or the like); give "
            "--tokenizer a folder with a whole tokenizer"
        )
        return
    if plan.format == "hf":
        yield from tokens.too_many(plan.side_files, rows=spec.vocab_size)
        if why := plan.incomplete(plan.given):
            yield f"{why}: give --tokenizer a folder with tokenizer.json or added_tokens.json, or --vocab-size"
    if plan.emit and plan.format != "torch_dist":
        yield f"--emit {plan.emit} needs --format torch_dist, not {plan.format}"
    if plan.emit:
        yield from refusals(spec)
        if (plan.out / "release").is_dir() and not (plan.out / "release").is_symlink():
            yield f"{plan.out / 'release'} is a checkpoint of its own; name another folder to emit into"


def _ours_to_replace(plan: "Plan") -> bool:
    """Return whether --overwrite may replace what is there: a checkpoint of the same kind, never some other folder."""
    if not plan.out.is_dir():
        return False
    if plan.format != "hf":
        return (plan.out / TRACKER).is_file() or any((plan.out / name).is_dir() for name in ("release", plan.folder.name))
    if not (plan.out / "config.json").is_file() or "model_type" not in read_json(plan.out / "config.json"):
        return False
    known = (manifest.read(plan.out) or {}).get("side_files", {})
    below = [p.relative_to(plan.out).as_posix() for p in plan.out.rglob("*") if p.parent != plan.out and not p.is_dir()]
    return all(name in known or tokens.is_tokenizer(name) for name in below)
