"""An unfinished conversion, and how it is taken up again: what it is of, and which logical tensors are on the disk.

Beside the folder to be made lie `.mconv-partial-NAME`, the checkpoint so far, and `.mconv-partial-NAME.journal`:

    plan.json        what is converted to what: the source's files and tensors, the targets, the options; for people, the
                     command and the bytes of each logical tensor
    done-R.jsonl     a line for each logical tensor that rank R has written, after its bytes were flushed
    mconv.json       the manifest, once all is written: the sign that NAME is this conversion's result
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mconv
from mconv.convert.engine.plan import Plan
from mconv.convert.engine.stream import CopyResult
from mconv.convert.engine.tasks import CopyTask
from mconv.convert.folders import manifest
from mconv.convert.folders.staging import PLAN, Staging, sync, write_whole
from mconv.convert.formats.file_layout import FileLayout
from mconv.errors import MconvError


def fingerprint(plan: Plan, files: FileLayout, *, step: str, allow_nonfinite: bool) -> dict[str, Any]:
    """Return all that decides the bytes of the result. An unfinished conversion can only be continued by its equal."""
    weights, *others = plan.parts
    read = {path for part in plan.parts for path in part.source.files()}
    read |= {*plan.side_files.values(), plan.model.path / manifest.NAME}
    sources = [*weights.source.fingerprint(), *([part.prefix, part.source.fingerprint()] for part in others)]
    targets = [(t.key, t.shape, str(t.dtype), asdict(files.extents[t.key])) for t in plan.targets]
    options = {
        "step": step, "format": plan.format, "dialect": plan.dialect, "layout": plan.layout and asdict(plan.layout),
        "dtype": plan.dtype and str(plan.dtype), "max shard size": plan.shard_bytes, "origin": plan.origin,
        "allow-nonfinite": allow_nonfinite, "iteration": plan.iteration, "vocab-padding": plan.vocab_padding,
        "emit": plan.emit,
    }  # fmt: skip
    return {
        "mconv": mconv.__version__,
        "options": options,
        "files": {f"{path.parent.name}/{path.name}": _state(path) for path in sorted(read) if path.is_file()},
        "source tensors": _hashed(sources),
        "source architecture": _hashed(plan.spec.to_dict()),
        "target tensors": _hashed(targets),
        "target files": files.sizes,
    }


def _state(path: Path) -> list[int]:
    """Return the size and time of change of a file."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _hashed(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def begin(
    staging: Staging, files: FileLayout, made_of: dict[str, Any], *,
    resume: bool, overwrite: bool, sizes: Mapping[str, int], command: str | None,
) -> dict[str, CopyResult]:  # fmt: skip
    """Make the partial folder and its journal, or take up those that are there; returns what is done already.

    Raises MconvError if what is there is of another conversion, or was damaged.
    """
    before = _read(staging.journal / PLAN) if resume else None
    if before is not None and (staging.partial.is_dir() or staging.published):
        _check_same(staging, before["of"], made_of)
        if not (staging.published or overwrite or before["overwrite"]) and staging.folder.exists():
            raise _exists(staging)
        if not staging.published:
            _check_sizes(staging, files)
        return finished(staging)
    if not overwrite and staging.folder.is_dir() and any(staging.folder.iterdir()):  # came since the plan was made
        raise _exists(staging)
    staging.clear()
    staging.partial.mkdir()
    files.create(staging.partial)
    staging.journal.mkdir()
    record = {"of": made_of, "overwrite": overwrite, "command": command, "sizes": dict(sizes)}
    write_whole(staging.journal / PLAN, json.dumps(record, indent=1))
    for folder in (staging.partial, staging.journal, staging.folder.parent):
        sync(folder)
    return {}


def _exists(staging: Staging) -> MconvError:
    return MconvError(f"{staging.folder} exists; give --overwrite to replace it, or name another folder")


def _read(path: Path) -> dict[str, Any] | None:
    """Return the record of an unfinished conversion, or None if it is not there or was cut short."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("of"), dict) and isinstance(found.get("overwrite"), bool)
    return found if whole else None


def _check_same(staging: Staging, before: dict[str, Any], now: dict[str, Any]) -> None:
    differ = []
    for key in now:
        old, new = before.get(key), json.loads(json.dumps(now[key]))
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
            differ += [f"{key}: {name} was {old.get(name)}, now {new.get(name)}" for name in names]
        else:
            differ.append(f"{key} differ" if key.endswith("s") else f"{key} was {old}, now {new}")
    if differ:
        raise MconvError(
            f"{staging.partial} is of another conversion and cannot be continued by this one ({'; '.join(differ[:5])}); "
            "repeat the command that was interrupted, or leave --resume out to start again"
        )


def _check_sizes(staging: Staging, files: FileLayout) -> None:
    for name, size in files.sizes.items():
        path = staging.partial / name
        if not path.is_file() or path.stat().st_size != size:
            raise MconvError(f"{path} is missing or was changed; leave --resume out to start again")


def finished(staging: Staging) -> dict[str, CopyResult]:
    """Return what the journals say is on the disk. A line that was cut short, or that is none of ours, says nothing."""
    found = {}
    for path in sorted(staging.journal.glob("done-*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                done = CopyResult(**json.loads(line))
            except (ValueError, TypeError):
                continue
            if _sound(done):
                found[done.logical] = done
    return found


def _sound(done: CopyResult) -> bool:
    tables = isinstance(done.logical, str) and isinstance(done.digests, dict) and isinstance(done.crcs, dict)
    texts = tables and all(isinstance(value, str) for value in done.digests.values())
    return texts and all(type(value) is int and 0 <= value < 1 << 32 for value in done.crcs.values())


def vouched(task: CopyTask, done: CopyResult | None, *, checksums: bool) -> bool:
    """Return whether a journal's line says all that must be known of a task to leave it out."""
    if done is None:
        return False
    keys = {destination.target.key for destination in task.destinations} if checksums else set()
    return done.crcs.keys() == keys and (not task.digest or done.digests.keys() == {"cast", "source"})


def record(staging: Staging, rank: int, done: Iterable[CopyResult], files: Iterable[str]) -> None:
    """Flush these files, and only then say that these tensors are in them."""
    for name in files:
        sync(staging.partial / name, data_only=True)
    lines = "".join("\n" + json.dumps(asdict(one)) for one in done)  # after a line that was cut short too
    with (staging.journal / f"done-{rank}.jsonl").open("a", encoding="utf-8") as file:
        file.write(lines + "\n")
