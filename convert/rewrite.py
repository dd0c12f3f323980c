"""The engine: for each tensor of the target, pull just the pieces it needs from the source, and write the bytes.

Importing, exporting, resharding and merging are this one call with other spellings. Nothing is inverted by hand. The
result appears all at once: written beside the target, flushed, renamed into place, the tracker last.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mconv.convert import bridge, manifest, spell, tokens
from mconv.convert.checkpoint import SIDE_FOLDER, TRACKER
from mconv.convert.dialects import DIALECTS, mcore
from mconv.convert.formats import hf, mp_rank, torch_dist
from mconv.convert.formats.hf import read_json
from mconv.convert.plan import Plan
from mconv.convert.source import Progress, Source, assemble, check_copies, check_digests, check_zero, digests, quiet
from mconv.errors import MconvError
from mconv.shard.layout import Layout

PARTIAL = ".mconv-partial-"
"""What is not finished has this prefix; nothing reads such a folder, and the next run to the same place removes it."""


def rewrite(plan: Plan, *, step: str, allow_nonfinite: bool = False, progress: Progress = quiet) -> dict[str, Any]:
    """Write the checkpoint that was planned; returns its manifest. A kill leaves the old state or a `.mconv-partial-`.

    `progress` is told 2 bytes for each that is written: one when it is read and hashed, one when it is written.
    """
    source = Source.of(plan.source)
    check_copies(source)
    found = digests(source, dtype=plan.dtype, allow_nonfinite=allow_nonfinite, progress=progress)
    check_digests(source, found.stored)
    _check_left_out(plan, source)
    unchanged = "what was there before is unchanged"
    with _explained(f"could not write {plan.folder}", unchanged), _beside(plan.folder) as partial:
        _write_tensors(plan, source, partial, progress)
        _write_side_files(plan, partial)
        if plan.emit and plan.layout is not None:
            _emit(plan, partial, plan.layout)
        made = _manifest(plan, step, found.cast)
        manifest.write(partial, made)
        _flush(partial)
    if plan.format != "hf":
        with _explained(f"could not write {plan.out / TRACKER}", f"{plan.folder} is whole, but nothing points to it"):
            _write_tracker(plan)
    return made


@contextmanager
def _explained(what: str, state: str) -> Iterator[None]:
    """A full disk or a missing right is the user's to mend: what failed, why, and what state that leaves."""
    try:
        yield
    except OSError as error:
        raise MconvError(f"{what}: {error.strerror or error}; {state}") from error


def _check_left_out(plan: Plan, source: Source) -> None:
    wanted = {stored.logical for stored in plan.stored}
    for logical in source.groups:
        if logical not in wanted:
            check_zero(source, logical)


def _write_tensors(plan: Plan, source: Source, folder: Path, progress: Progress) -> None:
    by_key = {stored.key: stored for stored in plan.stored}
    for target, put in _writer(plan, folder):
        put(assemble(source, by_key[target.key], dtype=target.dtype))
        progress(target.nbytes)


def _writer(plan: Plan, folder: Path) -> Iterator[tuple[Any, Any]]:
    spec, layout = plan.source.spec, plan.layout
    if layout is None:
        return hf.write(folder, plan.targets, limit=plan.shard_bytes)
    iteration = plan.iteration or 0
    args = DIALECTS[plan.dialect].args_of(spec, layout, dtype=_name(plan.final_dtype), iteration=iteration)
    common: dict[str, Any] = {"args": args, "checkpoint_version": 3.0, "iteration": iteration}
    if plan.format == "mp_rank":
        args.ckpt_format = "torch"
        return mp_rank.write(folder, plan.targets, common, DIALECTS[plan.dialect].nests)
    common["content_metadata"] = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
    shapes = spell.global_shapes(plan.source.family, spec, layout)
    return torch_dist.write(folder, plan.targets, shapes, common, mcore.extra_state_keys(spec.num_layers))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _write_side_files(plan: Plan, folder: Path) -> None:
    """Config and tokenizer files: bytes as they were, but for a config that is no longer true."""
    into = folder if plan.format == "hf" else folder / SIDE_FOLDER
    into.mkdir(exist_ok=True)
    for file in plan.side_files:
        shutil.copyfile(file, into / file.name)
    config = into / "config.json"
    if not config.is_file() or not _still_true(plan, read_json(config)):
        old = read_json(config) if config.is_file() else {}
        config.write_text(json.dumps(_config(plan, old), indent=2) + "\n", encoding="utf-8")


def _emit(plan: Plan, folder: Path, layout: Layout) -> None:
    """The files of another program, beside the tensors."""
    dtype, done = _name(plan.final_dtype), plan.iteration or 0
    bridge.emit(folder, plan.source.spec, layout, dtype=dtype, step=done, files=plan.side_files)


def _still_true(plan: Plan, config: dict[str, Any]) -> bool:
    family = plan.source.family
    told = config.get("dtype") or config.get("torch_dtype")
    same = family.read_config(config) == family.expressible(plan.source.spec)
    return same and (plan.dtype is None or told == _name(plan.dtype))


def _config(plan: Plan, old: dict[str, Any]) -> dict[str, Any]:
    """A config.json of the spec, readable by transformers 4 and 5 alike, keeping what the old one says beyond it."""
    family = plan.source.family
    spec = family.expressible(plan.source.spec)
    name = _name(plan.final_dtype)
    old = old or tokens.special_ids(plan.side_files)
    return old | family.write_config(spec) | {"torch_dtype": name, "dtype": name}


def _manifest(plan: Plan, step: str, found: dict[str, str]) -> dict[str, Any]:
    before = plan.source.manifest or {}
    layout = {"tp": plan.layout.tp, "pp": plan.layout.pp, "vpp": plan.layout.vpp} if plan.layout else {}
    detail = {"from": plan.origin, "from_format": plan.source.format, "to_format": plan.format, **layout}
    if plan.fingerprint:
        detail["fingerprint"] = plan.fingerprint
    if plan.dtype:
        detail["cast_to"] = _name(plan.dtype)
    origin = before.get("source") or {"name": plan.origin, "format": plan.source.format}
    return manifest.make(
        plan.source.spec,
        format=plan.format,
        dialect=None if plan.format == "hf" else plan.dialect,
        layout=plan.layout,
        dtype=_name(plan.final_dtype),
        source=origin,
        digests=found,
        copies=plan.source.copies,
        history=[*before.get("history", []), {"step": step, "detail": detail}],
    )


# ---- all or nothing --------------------------------------------------------------------------------------------------
@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when the work within succeeded, and is removed if it failed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f"{PARTIAL}{folder.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    old = folder.parent / f"{PARTIAL}old-{folder.name}"
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        partial.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_tracker(plan: Plan) -> None:
    """Last: before it names the iteration, nothing loads it."""
    word = "release" if plan.iteration is None else str(plan.iteration)
    if plan.emit:
        bridge.point(plan.out, plan.folder, link=word == "release")
    partial = plan.out / f"{PARTIAL}tracker"
    partial.write_text(word, encoding="utf-8")
    _sync(partial)
    partial.replace(plan.out / TRACKER)
