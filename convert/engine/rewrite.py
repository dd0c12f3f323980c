"""The engine: each logical tensor is pulled from whatever stores it, and written to whatever will.

Importing, exporting, resharding and merging are this one call with other spellings. Nothing is inverted by hand. Files
are laid out first, so tensors can be written in any order, by several threads and several ranks. The result appears all
at once: written beside the target, flushed, renamed into place, the tracker last.
"""

import threading
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from mconv.convert.engine import journal, pool
from mconv.convert.engine.companions import emit, manifest_of, write_side_files
from mconv.convert.engine.files import lay_out
from mconv.convert.engine.parts import Part
from mconv.convert.engine.plan import Plan
from mconv.convert.engine.publish import explained, publish
from mconv.convert.engine.ranks import ALONE, RankDied, Ranks
from mconv.convert.engine.stream import CopyContext, CopyResult, stream
from mconv.convert.engine.tasks import CopyTask, tasks_of
from mconv.convert.folders import manifest
from mconv.convert.folders.digests import Recorded, check_digests, recorded
from mconv.convert.folders.host import workers
from mconv.convert.folders.staging import Staging
from mconv.convert.formats.file_layout import FileLayout
from mconv.convert.formats.tensors import Located
from mconv.convert.sources.read import Progress, quiet
from mconv.convert.sources.read import digests as digests_of
from mconv.convert.sources.scratch import Scratch
from mconv.convert.sources.stored import StoredSource
from mconv.errors import MconvError


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
    sizes = {task.name: task.nbytes for task in tasks_of(plan, files)}
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
    """Do what is left of the work, this rank its share; return what is known of every logical tensor then."""
    tasks = tasks_of(plan, files)
    left = [u for u in tasks if not journal.vouched(u, done.get(u.name), checksums=files.checksums)]
    mine = list(pool.Lanes.of(left, [u.nbytes for u in left], ranks.world).lanes[ranks.rank])
    lock, stop = threading.Lock(), threading.Event()

    def tell(count: int) -> None:
        with lock:
            progress(count * ranks.world)  # its share stands for those of the others

    def alive() -> None:
        if stop.is_set():
            raise pool.Stopped

    context = CopyContext(
        folder=staging.partial, allow_nonfinite=allow_nonfinite, checksums=files.checksums,
        recorded=_recorded(plan).algorithm, progress=tell, alive=alive,
    )  # fmt: skip
    plan.model.listen(tell)
    progress(plan.model.passes * (sum(task.nbytes for task in tasks) - sum(task.nbytes for task in left)))
    everything = {name: done[name] for name in (task.name for task in tasks) if name in done}
    for share in ranks.together(lambda: _stream_mine(mine, context, staging, ranks.rank, stop)):
        everything.update(share)
    return everything


def _stream_mine(
    tasks: list[CopyTask], context: CopyContext, staging: Staging, rank: int, stop: threading.Event
) -> dict[str, CopyResult]:
    files = {task.name: task.files for task in tasks}
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


def _recorded(plan: Plan) -> Recorded:
    return recorded(plan.model.path, plan.model.manifest)


def _finish(
    plan: Plan, files: FileLayout, staging: Staging, done: Mapping[str, CopyResult], *, step: str, resumed: set[str]
) -> dict[str, Any]:
    """Check what was read against the source's manifest, write what is not a tensor, and publish."""
    hashed = {name: done[name].digests for part in plan.parts for name in part.names()}
    read = {name: digests["source"] for name, digests in hashed.items()}
    check_digests(plan.model.path, _recorded(plan).digests, read)
    made = manifest_of(plan, step, {name: digests["cast"] for name, digests in hashed.items()}, read)
    if not staging.published:
        with explained(f"could not write {plan.folder}", "what was there before is unchanged"):
            files.finish(staging.partial, {key: crc for one in done.values() for key, crc in one.crcs.items()})
            made["side_files"] = write_side_files(plan, staging.partial)
            if plan.emit and plan.layout is not None:
                emit(plan, staging.partial, plan.layout)
            manifest.write(staging.partial, made)
        for part in plan.parts:
            _check_resumed(part, files, staging.partial, made["digests"], resumed)
    publish(plan, staging)
    return made


def _check_resumed(
    part: Part, files: FileLayout, folder: Path, made: Mapping[str, str], resumed: Collection[str]
) -> None:
    """Read again what an earlier run is said to have written: files may have changed since, and journals be wrong."""
    names = {name.removeprefix(part.prefix): name for name in part.names() if name in resumed}
    found = digests_of(_written(part, files, folder), allow_nonfinite=True, only=names).stored if names else {}
    if changed := sorted(names[tensor] for tensor in names if found[tensor] != made[names[tensor]]):
        raise MconvError(
            f"{folder}: {len(changed)} tensors ({', '.join(changed[:5])}) are not what the interrupted run "
            "wrote; nothing was kept of it: start anew without --resume"
        )


def _written(part: Part, files: FileLayout, folder: Path) -> StoredSource:
    """Return the source that reads what was written of a part."""
    places = ((target, files.extents[target.key]) for target in part.targets)
    located = {t.key: Located(folder / at.file, at.offset, t.dtype, t.shape) for t, at in places}
    own = part.source
    return StoredSource(label=str(folder), family=own.family, spec=own.spec, stored=part.stored, located=located)
