"""The engine: each logical tensor is pulled from whatever stores it, and written to whatever will.

Importing, exporting, resharding and merging are this one call with other spellings. Nothing is inverted by hand. Files
are laid out first, so tensors can be written in any order, by several threads and several ranks. The result appears all
at once: written beside the target, flushed, renamed into place, the tracker last.
"""

import json
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from mconv.convert import bridge, dtypes, manifest, sidecar, tokens
from mconv.convert.checkpoint import SIDE_FOLDER
from mconv.convert.digests import check_digests, combined, recorded
from mconv.convert.engine import journal, pool
from mconv.convert.engine.files import lay_out
from mconv.convert.engine.plan import Plan
from mconv.convert.engine.publish import explained, publish
from mconv.convert.engine.ranks import ALONE, RankDied, Ranks
from mconv.convert.engine.stream import CopyContext, CopyResult, CopyTask, Destination, stream
from mconv.convert.formats.dtype import in_torch
from mconv.convert.formats.file_layout import FileLayout
from mconv.convert.formats.hf import read_json
from mconv.convert.host import workers
from mconv.convert.opening import open_checkpoint
from mconv.convert.rope import OLD_KEYS
from mconv.convert.source import Progress, Scratch, Source, quiet
from mconv.convert.source import digests as digests_of
from mconv.convert.staging import Staging
from mconv.convert.table import Logical
from mconv.errors import MconvError
from mconv.shard.layout import Layout


def rewrite(
    plan: Plan, *, step: str, allow_nonfinite: bool = False, progress: Progress = quiet, ranks: Ranks = ALONE,
    command: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the checkpoint that was planned; returns its manifest.

    A kill leaves the old state, and a `.mconv-partial-` which a plan with `resume` takes up; an error leaves the old
    state alone. `progress` is told once of each byte that is written. Every rank calls this with the same plan.
    `command` is what the user typed, for who finds the conversion unfinished.
    """
    files, staging = lay_out(plan), Staging.of(plan.folder)
    sizes = {str(task.logical): task.nbytes for task in tasks_of(plan, files)}
    made_of = journal.fingerprint(plan, files, step=step, allow_nonfinite=allow_nonfinite)
    unchanged = explained(f"could not write {plan.folder}", "what was there before is unchanged")

    def begin() -> dict[str, CopyResult]:
        with unchanged:
            held.enter_context(staging.alone())
            return journal.begin(
                staging, files, made_of, resume=plan.resume, overwrite=plan.overwrite, sizes=sizes, command=command
            )

    there = plan.out.exists()
    try:
        with ExitStack() as held:
            done = ranks.first(begin)
            return _do(plan, files, staging, done, ranks, step=step, allow_nonfinite=allow_nonfinite, progress=progress)
    except Exception:
        if ranks.rank == 0 and not there and plan.format != "hf":
            with suppress(OSError):  # it holds something
                plan.out.rmdir()
        raise


def _do(
    plan: Plan, files: FileLayout, staging: Staging, done: Mapping[str, CopyResult], ranks: Ranks, *,
    step: str, allow_nonfinite: bool, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    try:
        everything = _stream_all(plan, files, staging, done, ranks, allow_nonfinite=allow_nonfinite, progress=progress)
        return ranks.first(lambda: _finish(plan, files, staging, everything, step=step, resumed=set(done)))
    except RankDied:  # as good as killed: what was done is kept for --resume
        raise
    except Exception:
        if ranks.rank == 0 and staging.partial.exists():
            staging.clear()
        raise


def _stream_all(
    plan: Plan, files: FileLayout, staging: Staging, done: Mapping[str, CopyResult], ranks: Ranks, *,
    allow_nonfinite: bool, progress: Progress,
) -> dict[str, CopyResult]:  # fmt: skip
    """Do what is left of the work, this rank its share; what is known of every logical tensor then."""
    tasks = tasks_of(plan, files)
    left = [u for u in tasks if not journal.vouched(u, done.get(str(u.logical)), checksums=files.checksums)]
    mine = list(pool.Lanes.of(left, [u.nbytes for u in left], ranks.world).lanes[ranks.rank])
    lock, stop = threading.Lock(), threading.Event()

    def tell(count: int) -> None:
        with lock:
            progress(count * ranks.world)  # its share stands for those of the others

    def alive() -> None:
        if stop.is_set():
            raise pool.Stopped

    source, cast = Source.of(plan.source), None if plan.dtype is None else in_torch(plan.dtype)
    context = CopyContext(
        source=source, folder=staging.partial, cast=cast, allow_nonfinite=allow_nonfinite,
        checksums=files.checksums, recorded=recorded(plan.source).algorithm, progress=tell, alive=alive,
    )  # fmt: skip
    progress(sum(task.nbytes for task in tasks) - sum(task.nbytes for task in left))
    everything = {name: done[name] for name in (str(task.logical) for task in tasks) if name in done}
    for share in ranks.together(lambda: _stream_mine(mine, context, staging, ranks.rank, stop)):
        everything.update(share)
    return everything


def _stream_mine(
    tasks: list[CopyTask], context: CopyContext, staging: Staging, rank: int, stop: threading.Event
) -> dict[str, CopyResult]:
    files = {str(task.logical): {destination.extent.file for destination in task.destinations} for task in tasks}
    scratches: dict[int, Scratch] = {}
    done: dict[str, CopyResult] = {}

    def work(task: CopyTask) -> CopyResult:
        return stream(task, context, scratches.setdefault(threading.get_ident(), Scratch()))

    def settle(batch: list[CopyResult]) -> None:
        journal.record(staging, rank, batch, sorted(set().union(*(files[one.logical] for one in batch))))
        done.update({one.logical: one for one in batch})

    lanes = pool.Lanes.of(tasks, [task.nbytes for task in tasks], workers())
    with explained(f"could not write {staging.folder}", "what was there before is unchanged"):
        pool.run(lanes, work, settle, stop)
    return done


def tasks_of(plan: Plan, files: FileLayout) -> list[CopyTask]:
    """A unit for each logical tensor that the source has or the target wants."""
    destinations: dict[Logical, list[Destination]] = {}
    for target, stored in zip(plan.targets, plan.stored, strict=True):
        destinations.setdefault(stored.logical, []).append(Destination(target, stored, files.extents[target.key]))
    inside = dict.fromkeys(plan.source.family.logicals(plan.source.spec))
    every = dict.fromkeys([*inside, *destinations, *plan.source.by_logical])
    tasks = []
    for logical in every:
        to = tuple(destinations.get(logical, ()))
        tasks.append(
            CopyTask(logical, to, sum(destination.target.nbytes for destination in to), digest=logical in inside)
        )
    return tasks


def _finish(
    plan: Plan, files: FileLayout, staging: Staging, done: Mapping[str, CopyResult], *, step: str, resumed: set[str]
) -> dict[str, Any]:
    """Hold what was read against the source's manifest, write what is not a tensor, and publish."""
    inside = [str(x) for x in plan.source.family.logicals(plan.source.spec)]
    read = {name: done[name].digests["source"] for name in inside}
    check_digests(plan.source, read)
    made = _manifest(plan, step, {name: done[name].digests["cast"] for name in inside}, read)
    if not staging.published:
        with explained(f"could not write {plan.folder}", "what was there before is unchanged"):
            files.finish(staging.partial, {key: crc for one in done.values() for key, crc in one.crcs.items()})
            made["side_files"] = _write_side_files(plan, staging.partial)
            if plan.emit and plan.layout is not None:
                _emit(plan, staging.partial, plan.layout)
            manifest.write(staging.partial, made)
        _check_resumed(staging, made["digests"], resumed)
    publish(plan, staging)
    return made


def _check_resumed(staging: Staging, made: Mapping[str, str], resumed: set[str]) -> None:
    """Read again what an earlier run is said to have written: files may have changed since, and journals be wrong."""
    names = resumed & made.keys()
    if not names:
        return
    found = digests_of(Source.of(open_checkpoint(staging.partial)), allow_nonfinite=True, only=names).stored
    if changed := sorted(name for name in names if found[name] != made[name]):
        raise MconvError(
            f"{staging.partial}: {len(changed)} tensors ({', '.join(changed[:5])}) are not what the interrupted run "
            "wrote; nothing was kept of it: start anew without --resume"
        )


def _write_side_files(plan: Plan, folder: Path) -> dict[str, str]:
    """Write what travels with the model, bytes as they were but for a config that is no longer true; return digests."""
    into = folder if plan.format == "hf" else folder / SIDE_FOLDER
    into.mkdir(exist_ok=True)
    digests = sidecar.copy(plan.side_files, into)
    config = into / "config.json"
    old = read_json(config) if config.is_file() else {}
    if not old or not _still_true(plan, old):
        config.write_text(json.dumps(_config(plan, old), indent=2) + "\n", encoding="utf-8")
    else:
        dtypes.set_in(config, plan.final_dtype.name)
        if plan.format == "hf":
            _add_old_rope(plan, config)
    return {name: digest for name, digest in digests.items() if name != config.name}


def _emit(plan: Plan, folder: Path, layout: Layout) -> None:
    """The files of another program, beside the tensors."""
    dtype, done = plan.final_dtype.name, plan.iteration or 0
    bridge.emit(folder, plan.source.spec, layout, dtype=dtype, step=done, files=plan.side_files)


def _still_true(plan: Plan, config: dict[str, Any]) -> bool:
    """Return whether a config describes what is written; its dtype aside, which can be set by itself."""
    family = plan.source.family
    same = family.read_config(config, plan.source.ignored.get("config_keys", ())) == family.expressible(plan.source.spec)
    named = [str(name).lower() for name in config.get("architectures") or [family.architecture]]
    whole = named == [family.architecture.lower()]  # what is written has its head, whatever the source had
    return same and whole


def _add_old_rope(plan: Plan, file: Path) -> None:
    """Say rotary settings once more as transformers 4 reads them, where a config.json has them for transformers 5 alone.

    Transformers 4 does not know `rope_parameters`: it would compute with base 10000 and no scaling, without a word.
    """
    family, config = plan.source.family, read_json(file)
    known = {key: value for key, value in config.items() if key != "rope_parameters"}
    spec, ignored = family.expressible(plan.source.spec), plan.source.ignored.get("config_keys", ())
    if family.read_config(known, ignored) != spec:
        written = family.write_config(spec)
        added = {key: written[key] for key in OLD_KEYS if config.get(key) is None}
        file.write_text(json.dumps({**config, **added}, indent=2) + "\n", encoding="utf-8")


def _config(plan: Plan, old: dict[str, Any]) -> dict[str, Any]:
    """A config.json of the spec, readable by transformers 4 and 5 alike, keeping what the old one says beyond it."""
    family = plan.source.family
    spec = family.expressible(plan.source.spec)
    name = plan.final_dtype.name
    old = old or tokens.special_ids(plan.side_files)
    new: dict[str, Any] = {**old, **family.write_config(spec), "torch_dtype": name, "dtype": name}
    for key, value in plan.source.ignored.get("config_keys", {}).items():  # rope_scaling.x
        where, _, inner = key.partition(".")
        if inner and isinstance(new.get(where), dict):
            new[where] = {**new[where], inner: value}
    return new


def _manifest(plan: Plan, step: str, found: dict[str, str], read: dict[str, str]) -> dict[str, Any]:
    """The manifest: `found` are the digests of what was written, `read` of what the source holds."""
    before = plan.source.manifest or {}
    layout = {"tp": plan.layout.tp, "pp": plan.layout.pp, "vpp": plan.layout.vpp} if plan.layout else {}
    detail = {"from": plan.origin, "from_format": plan.source.format, "to_format": plan.format, **layout}
    if plan.fingerprint:
        detail["fingerprint"] = plan.fingerprint
    if plan.dtype:
        detail["cast_to"] = plan.dtype.name
    origin = before.get("source") or {"name": plan.origin, "format": plan.source.format, "digest": combined(read)}
    return manifest.make(
        plan.source.spec,
        format=plan.format,
        dialect=None if plan.format == "hf" else plan.dialect,
        layout=plan.layout,
        dtype=plan.final_dtype.name,
        source=origin,
        digests=found,
        copies=plan.source.copies,
        ignored=plan.source.ignored,
        history=[*before.get("history", []), {"step": step, "detail": detail}],
        # what is merged with an adapter is the same model as nothing before it
        made_from=[] if plan.source.adapter else manifest.origins(plan.folder, plan.source.path, before),
        ancestors=manifest.descent(plan.folder, plan.source.path, before),
        merged_from=manifest.moved(plan.folder, plan.source.path, before.get("merged_from", {})),
    )
