"""An extracted adapter on disk: written beside its folder module by module, renamed into place when it is whole."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from mconv.convert.checkpoint import adapter_folder
from mconv.convert.extraction.extract import Extraction, Kept, LeftOut, Progress, adapter_of, left_out, one_module
from mconv.convert.folders import manifest
from mconv.convert.folders.staging import PLAN, Staging, flush, remove, write_whole
from mconv.convert.formats.mapped import forget
from mconv.convert.peft.lora import FACTORS, Linear
from mconv.errors import MconvError

DONE = "done-0.jsonl"
"""The journal's file with a line for each module that is done."""


def write(
    what: Extraction, out: Path, *, base: str, resume: bool = False, command: str | None = None,
    progress: Progress = lambda _: None,
) -> tuple[list[Kept], list[LeftOut]]:  # fmt: skip
    """Write the adapter's folder, in place of what is there; return what it keeps of each linear and what it leaves out.

    A kill leaves `out` as it was, and a folder beside it that `resume` takes up; `command` is what the user typed, for
    whoever finds it. Raises MconvError where the models do not differ, or change while they are read.
    """
    staging, made_of = Staging.of(out), fingerprint(what)
    with staging.alone():
        _begin(staging, what, made_of, resume=resume, command=command)
        try:
            kept, beside = _fill(what, staging, made_of=made_of, base=base, progress=progress)
        except Exception:
            staging.clear()
            raise
        flush(staging.partial)
        staging.swap()
        remove(staging.old)
        remove(staging.journal)
    return kept, beside


def _fill(
    what: Extraction, staging: Staging, *, made_of: str, base: str, progress: Progress
) -> tuple[list[Kept], list[LeftOut]]:
    """Fill the unfinished folder, so that nothing is left in it but the adapter."""
    partial = staging.partial
    found, files = {}, [partial / f"{number}.safetensors" for number in range(len(what.modules))]
    for (linear, layer), file in zip(what.modules, files, strict=True):
        found[linear.at(layer)] = _done(file, what, linear, layer)
        with (staging.journal / DONE).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps({"logical": linear.at(layer)}) + "\n")
        progress(what.size(linear))
        forget()
    adapter, beside = adapter_of(what, found), left_out(what)
    if fingerprint(what) != made_of:
        raise MconvError(f"{what.tuned.name} or {what.base.name} changed while it was read; extract it again")
    adapter_folder.write(adapter, partial, base=base)
    _describe(what, partial, staging.folder, base=base)
    for file in files:
        file.unlink()
    return [kept for kept, _ in found.values()], beside


def fingerprint(what: Extraction) -> str:
    """Return a digest of both models' files (place, size, time of change) and of what is extracted."""
    sources = (what.tuned.source, what.base.source)
    files = [(str(f), (at := f.stat()).st_size, at.st_mtime_ns) for one in sources for f in sorted(one.files())]
    asked = [what.rank, what.energy, what.seed, list(what.linears)]
    return hashlib.sha256(json.dumps([files, [one.fingerprint() for one in sources], asked]).encode()).hexdigest()


def _begin(staging: Staging, what: Extraction, made_of: str, *, resume: bool, command: str | None) -> None:
    """Make the unfinished folder, or take up the one that is there. Raises MconvError if it is of something else."""
    if resume and staging.unfinished:
        if json.loads((staging.journal / PLAN).read_text(encoding="utf-8")).get("made_of") != made_of:
            raise MconvError(
                f"{staging.partial} was begun with other models or options; leave out --resume to start anew"
            )
        return
    staging.clear()
    staging.partial.mkdir(parents=True)
    staging.journal.mkdir()
    sizes = {linear.at(layer): what.size(linear) for linear, layer in what.modules}
    write_whole(staging.journal / PLAN, json.dumps({"made_of": made_of, "command": command, "sizes": sizes}, indent=1))


def _done(file: Path, what: Extraction, linear: Linear, layer: int | None) -> tuple[Kept, dict[str, Tensor]]:
    """Return what was made of a module: read back where an earlier run has made it."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    if file.is_file():
        with safe_open(file, "pt") as opened:
            told = json.loads(opened.metadata()["kept"])
            factors = {name: opened.get_tensor(name) for name in FACTORS if told["rank"]}
        return Kept(**{**told, "shape": tuple(told["shape"])}), factors
    kept, factors = one_module(what, linear, layer)
    half = file.with_suffix(".half")
    save_file(factors, half, metadata={"kept": json.dumps(asdict(kept))})
    half.replace(file)
    return kept, factors


def _describe(what: Extraction, folder: Path, out: Path, *, base: str) -> None:
    """Write the manifest: what it is of, and which two models it comes from."""
    names = {"tuned": what.tuned.name, "base": what.base.name}
    detail: dict[str, Any] = {**names, "rank": what.rank, "energy": what.energy, "seed": what.seed}
    sides = (what.base, what.tuned)
    made = manifest.make(
        what.base.spec, format="peft", dialect=None, layout=None, dtype="float32", source={"name": base, "format": "hf"},
        digests={}, history=[*(what.base.manifest or {}).get("history", []), {"step": "lora extract", "detail": detail}],
        ignored=what.base.ignored, ancestors=[manifest.descent(out, side.path, None)[-1] for side in sides],
    )  # fmt: skip
    manifest.write(folder, made | {"adapter": {"rank": what.rank, "alpha": float(what.rank)}})
