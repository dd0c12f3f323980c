"""A conversion before a byte is written: what would be made, how large, and everything that is wrong with it."""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mconv.convert import dtypes, manifest, sidecar, spell, tokens
from mconv.convert.checkpoint import Checkpoint, target_layout
from mconv.convert.dialects import DIALECTS
from mconv.convert.dialects.bridge import refusals
from mconv.convert.formats.dtype import BFLOAT16, FLOAT16, FLOAT32, DType
from mconv.convert.formats.hf import read_json
from mconv.convert.formats.tensors import Target
from mconv.convert.host import SLAB_BYTES, workers
from mconv.convert.kinds import TRACKER
from mconv.convert.staging import Staging
from mconv.convert.table import Family, Stored
from mconv.errors import FormatError, LayoutError, MconvError, refuse
from mconv.shard.cut import repeat_last
from mconv.shard.layout import Layout
from mconv.shard.stages import EVEN, Uneven
from mconv.spec import ModelSpec

Format = Literal["hf", "torch_dist", "mp_rank"]
Emit = Literal["megatron-bridge"]
Padding = Literal["zeros", "last-row"]
"""What rows past the true vocabulary hold. Megatron-LLM and Megatron-LM's own tools repeat the last row."""
SHARD_BYTES = 5_000_000_000
"""Largest safetensors file, if nothing else is asked for."""
GENERATION = "generation_config.json"
DTYPES = {"fp32": FLOAT32, "bf16": BFLOAT16, "fp16": FLOAT16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything about a conversion that follows from names, shapes and byte counts."""

    source: Checkpoint
    out: Path
    """What the user named: a Hugging Face folder, or a Megatron root."""
    format: Format
    dialect: str
    """Of the names in a Megatron checkpoint."""
    layout: Layout | None
    dtype: DType | None
    """Cast to this; None keeps every tensor's own."""
    vocab_padding: Padding
    shard_bytes: int
    stored: list[Stored]
    targets: list[Target]
    overwrite: bool
    iteration: int | None
    """The iteration that a Megatron checkpoint is of; None: a `release`."""
    resume: bool
    """Continue an unfinished conversion, if one is there."""
    origin: str
    """What the source is called in manifests and cards: a repository, or a folder's bare name."""
    side_folder: Path | None
    """Where to take tokenizer and generation files from, instead of the source's own."""
    emit: Emit | None = None
    """Another program whose own files are written beside the tensors."""
    fingerprint: str | None = None
    """Of the source and of what was asked, to know the result again."""

    @property
    def folder(self) -> Path:
        """The folder that holds the tensors."""
        if self.format == "hf":
            return self.out.resolve() if self.out.is_symlink() else self.out  # a link stays one
        i = self.iteration
        if i is None and self.emit:
            i = 0  # Megatron-Bridge knows no release
        return self.out / ("release" if i is None else f"iter_{i:07d}")

    @property
    def side_files(self) -> dict[str, Path]:
        """Config, tokenizer and all other files that travel with the model, by their names below its folder."""
        found = self._gathered
        loose = self.source.loose_files if self._incomplete(found) else []
        return {name: path for name, path in found.items() if path not in loose}

    @property
    def _gathered(self) -> dict[str, Path]:
        """The given tokenizer whole and the given generation config first, then all that the source has."""
        legal = {name: path for name, path in self._given.items() if sidecar.is_legal(name)}
        first = {name: path for name, path in self._given.items() if name not in legal}
        return tokens.gather(first, self.source.side_files, legal)

    @property
    def _given(self) -> dict[str, Path]:
        """What of the folder that the user gave goes with the model: tokenizer, generation config, license."""
        found = sidecar.look(self.side_folder).files if self.side_folder else {}
        return {name: path for name, path in found.items()
                if tokens.is_tokenizer(name) or name == GENERATION or sidecar.is_legal(name)}  # fmt: skip

    def _incomplete(self, files: tokens.Files) -> str | None:
        return tokens.too_few(files, rows=self.source.spec.vocab_size)

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be assumed, or left out."""
        found = self._gathered
        why = self._incomplete(found) if set(found.values()) & set(self.source.loose_files) else None
        left_out = f"{why}; it is left out: give --tokenizer DIR with a tokenizer that has them, or --vocab-size"
        behind = sidecar.note(self.source.beside.left_out)
        return (*self.source.notes, *([left_out] if why else []), *([behind] if behind else []))

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.targets)

    @property
    def peak_bytes(self) -> int:
        """Anonymous memory: for each worker a slab, gathered, cast, put in the order of the target, and a copy of it."""
        spec, width = self.source.spec, max(t.dtype.itemsize for t in self.targets)
        heads = spec.kv_channels * spec.hidden_size * width  # rotary rows are put in another order by whole heads
        return 4 * workers() * max(2 * SLAB_BYTES, heads)

    @property
    def standing(self) -> Path:
        """The innermost folder on the way to the target that is there already."""
        target = self.out.resolve()
        return next(p for p in (target, *target.parents) if p.exists())

    @property
    def free_bytes(self) -> int:
        """Room on the disk that the target will lie on, with what an unfinished run there has taken of it."""
        return shutil.disk_usage(self.standing).free + Staging.of(self.folder).nbytes

    @property
    def final_dtype(self) -> DType:
        """The dtype of most elements of what is written."""
        return dtypes.most((target.dtype, target.nbytes // target.dtype.itemsize) for target in self.targets)


def make(
    source: Checkpoint, out: Path, *, format: Format, tp: int = 1, pp: int = 1, vpp: int = 1,
    vocab_multiple: int | None = None,
    dtype: str | None = None, shard_bytes: int = SHARD_BYTES, overwrite: bool = False,
    side_folder: Path | None = None, origin: str | None = None, dialect: str = "mcore",
    vocab_padding: Padding = "zeros", uneven: Uneven = EVEN, iteration: int | None = None, resume: bool = False,
    emit: Emit | None = None, fingerprint: str | None = None, check_room: bool = True,
) -> Plan:  # fmt: skip
    """Plan a conversion of `source` to `format` at `out`. Raises a MconvError that lists all that stands against it.

    `vocab_multiple`: 128 if not given, as Megatron-LM has it; 1 for Megatron-Bridge, which does not pad on import.
    `check_room=False` plans for a disk that is elsewhere: `shortage` then says whether this one would do.
    """
    if dtype is not None and dtype not in DTYPES:
        raise MconvError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if iteration is not None and iteration < 0:
        raise MconvError(f"iteration {iteration} is negative")
    if shard_bytes < 1:
        raise MconvError(f"a shard of {shard_bytes} bytes can hold nothing")
    if format == "hf" and (tp, pp, vpp, uneven) != (1, 1, 1, EVEN):
        raise LayoutError("a Hugging Face folder is not sharded by ranks: tp and pp do not apply")
    if dialect not in DIALECTS or (dialect != "mcore" and format != "mp_rank"):
        raise MconvError(
            f"dialect {dialect!r} of {format}: mp_rank can have {', '.join(DIALECTS)}, torch_dist mcore only"
        )
    spec, family = source.spec, source.family
    family.write_config(family.expressible(spec))  # every target has one
    sizes = {
        "tp": tp,
        "pp": pp,
        "vpp": vpp,
        "vocab_multiple": (1 if emit else 128) if vocab_multiple is None else vocab_multiple,
    }
    layout = None if format == "hf" else target_layout(spec, family, dialect=dialect, uneven=uneven, **sizes)
    if layout is None:
        stored = spell.hf(family, family.expressible(spec), source.copies)
    elif format == "mp_rank":
        stored = spell.mp_rank_targets(DIALECTS[dialect], family, spec, layout)
    else:
        stored = spell.torch_dist_targets(family, spec, layout)
    if vocab_padding == "last-row":
        stored = [_pad_with_last(family, spec, s) for s in stored]
    cast = DTYPES[dtype] if dtype else None
    targets = [Target(s.key, s.piece.shape, cast or _dtype(source, s)) for s in stored]
    plan = Plan(
        source=source, out=out, format=format, dialect=dialect, layout=layout, dtype=cast, vocab_padding=vocab_padding,
        shard_bytes=shard_bytes, stored=stored, targets=targets, overwrite=overwrite, resume=resume,
        iteration=source.iteration if iteration is None else iteration,
        side_folder=side_folder, origin=origin or source.name, emit=emit, fingerprint=fingerprint,
    )  # fmt: skip
    try:
        refuse(_problems(plan, check_room=check_room), doing=f"cannot write {out}")
    except OSError as error:
        raise MconvError(f"{str(out)[:80]}: {error.strerror or error}") from error
    return plan


def _pad_with_last(family: Family, spec: ModelSpec, stored: Stored) -> Stored:
    if family.row(stored.logical.row).cut != "v":
        return stored
    piece = repeat_last(stored.piece, family.axes(stored.logical), spec.sizes)
    return dataclasses.replace(stored, piece=piece)


def _dtype(source: Checkpoint, stored: Stored) -> DType:
    """The dtype that a tensor keeps. Raises FormatError if its parts have several."""
    keys = [s.key for s in source.by_logical.get(stored.logical, [])]
    dtypes = {source.located[k].dtype for k in keys}
    if len(dtypes) > 1:
        raise FormatError(
            f"{source.path}: the parts of {stored.logical} have dtypes {sorted(map(str, dtypes))}; give --dtype"
        )
    return dtypes.pop() if dtypes else source.dtype


def _problems(plan: Plan, *, check_room: bool) -> list[str]:
    out, problems = plan.out, []
    taken = out.exists() and (not out.is_dir() or any(p.name for p in out.iterdir() if not p.name.startswith(".mconv-")))
    source, target, staging = plan.source.path.resolve(), out.resolve(), Staging.of(plan.folder)
    taken = taken and not (plan.resume and staging.unfinished)  # it was looked at when that run began
    if plan.format == "hf" and Path.cwd().is_relative_to(target):
        problems.append(
            f"--out {out} is the current working directory, which a conversion would replace; choose another directory"
        )
    elif source == target:
        problems.append(f"--out {out} is the source itself; choose another folder")
    elif source.is_relative_to(target):
        problems.append(f"--out {out} contains the source, {plan.source.path}; choose another folder")
    elif target.is_relative_to(source):
        problems.append(f"--out {out} is inside the source, {plan.source.path}; choose another folder")
    elif out.is_file():
        problems.append(f"--out {out} is a file; name a folder")
    elif taken and not plan.overwrite:
        problems.append(f"--out {out} exists and is not empty; give --overwrite to replace it, or name another folder")
    elif taken and not _ours_to_replace(plan):
        problems.append(
            f"--out {out} is not a checkpoint, so --overwrite will not replace it; remove it, or name another folder"
        )
    if plan.side_folder is not None and not plan.side_folder.is_dir():
        problems.append(f"{plan.side_folder} is not a folder; --tokenizer takes a folder with tokenizer files")
    elif plan.side_folder is not None and not tokens.makes_tokenizer(plan._given):
        problems.append(
            f"no tokenizer files in {plan.side_folder} ({', '.join(tokens.VOCABULARY[:2])} or the like); give "
            "--tokenizer a folder with a whole tokenizer"
        )
    else:
        problems += _side_problems(plan)
    parent = plan.standing
    if out.is_symlink() and not out.exists():
        problems.append(f"{out} is a link to nothing; remove it or name another folder")
    elif not parent.is_dir() and parent != target:
        problems.append(f"{parent} is a file, so nothing can be written below it")
    elif check_room and (short := shortage(plan)):
        problems.append(short)
    return problems


def shortage(plan: Plan) -> str | None:
    """Why the disk is too small for the target, or None."""
    free = plan.free_bytes
    if free >= plan.nbytes * 1.01:
        return None
    return f"{plan.standing} has {free / 1e9:.1f} GB free; the checkpoint needs {plan.nbytes / 1e9:.1f} GB"


def _side_problems(plan: Plan) -> list[str]:
    """A tokenizer that does not fit the exported model, or a program that cannot have it."""
    problems = []
    if plan.format == "hf":
        problems += tokens.too_many(plan.side_files, rows=plan.source.spec.vocab_size)
        if why := plan._incomplete(plan._given):
            problems.append(f"{why}: give --tokenizer a folder with tokenizer.json or added_tokens.json, or --vocab-size")
    if plan.emit and plan.format != "torch_dist":
        problems.append(f"--emit {plan.emit} needs --format torch_dist, not {plan.format}")
    if plan.emit:
        problems += refusals(plan.source.spec)
        if (plan.out / "release").is_dir() and not (plan.out / "release").is_symlink():
            problems.append(f"{plan.out / 'release'} is a checkpoint of its own; name another folder to emit into")
    return problems


def _ours_to_replace(plan: Plan) -> bool:
    """--overwrite replaces a checkpoint of the same kind, never some other folder that was named by mistake."""
    if not plan.out.is_dir():
        return False
    if plan.format != "hf":
        return (plan.out / TRACKER).is_file() or any((plan.out / name).is_dir() for name in ("release", plan.folder.name))
    if not (plan.out / "config.json").is_file() or "model_type" not in read_json(plan.out / "config.json"):
        return False
    known = (manifest.read(plan.out) or {}).get("side_files", {})
    below = [p.relative_to(plan.out).as_posix() for p in plan.out.rglob("*") if p.parent != plan.out and not p.is_dir()]
    return all(name in known or tokens.is_tokenizer(name) for name in below)
