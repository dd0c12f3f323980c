"""A conversion before a byte is written: what would be made, how large, and everything that is wrong with it."""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mconv.convert.checkpoint.model import SourceModel, target_layout
from mconv.convert.dialects import DIALECTS, spell
from mconv.convert.engine.parts import Part
from mconv.convert.engine.problems import problems
from mconv.convert.folders import sidecar, tokens
from mconv.convert.folders.host import SLAB_BYTES, workers
from mconv.convert.folders.staging import Staging
from mconv.convert.formats.dtype import BFLOAT16, FLOAT16, FLOAT32, DType
from mconv.convert.formats.tensors import Target
from mconv.convert.sources.source import Source
from mconv.convert.spelling import dtypes
from mconv.convert.spelling.table import Family, Stored
from mconv.errors import LayoutError, MconvError, refuse
from mconv.shard.layout import Layout
from mconv.shard.stages import EVEN, Uneven
from mconv.spec import ModelSpec

Format = Literal["hf", "torch_dist", "mp_rank"]
Emit = Literal["megatron-bridge"]
Padding = Literal["zeros", "last-row"]
"""The content of rows past the true vocabulary. Megatron-LLM and Megatron-LM's own tools repeat the last row."""
SHARD_BYTES = 5_000_000_000
"""Largest safetensors file, if nothing else is asked for."""
GENERATION = "generation_config.json"
DTYPES = {"fp32": FLOAT32, "bf16": BFLOAT16, "fp16": FLOAT16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything about a conversion that follows from names, shapes and byte counts."""

    parts: tuple[Part, ...]
    """The parts to write, the weights first."""
    model: SourceModel
    """The model that the parts are read from, with its provenance."""
    out: Path
    """The output path that the user named: a Hugging Face folder, or a Megatron root."""
    format: Format
    dialect: str
    """The dialect of the names in a Megatron checkpoint."""
    layout: Layout | None
    dtype: DType | None
    """The dtype that the weights are cast to; None keeps every tensor's own."""
    vocab_padding: Padding
    shard_bytes: int
    overwrite: bool
    iteration: int | None
    """The iteration that a Megatron checkpoint is of; None: a `release`."""
    resume: bool
    """Continue an unfinished conversion, if one is there."""
    origin: str
    """The source's name in manifests and cards: a repository, or a folder's bare name."""
    side_folder: Path | None
    """The folder of tokenizer and generation files that replace the source's own."""
    emit: Emit | None = None
    """Another program whose own files are written beside the tensors."""
    fingerprint: str | None = None
    """The fingerprint of the source and the request, by which a result is recognised."""

    @property
    def weights(self) -> Part:
        return self.parts[0]

    @property
    def family(self) -> Family:
        return self.weights.source.family

    @property
    def spec(self) -> ModelSpec:
        """The architecture of the model."""
        return self.weights.source.spec

    @property
    def targets(self) -> list[Target]:
        """The tensors that are written, of all parts."""
        return [target for part in self.parts for target in part.targets]

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
        loose = self.model.loose_files if self.incomplete(found) else []
        return {name: path for name, path in found.items() if path not in loose}

    @property
    def _gathered(self) -> dict[str, Path]:
        """The given tokenizer whole and the given generation config first, then all that the source has."""
        legal = {name: path for name, path in self.given.items() if sidecar.is_legal(name)}
        first = {name: path for name, path in self.given.items() if name not in legal}
        return tokens.gather(first, self.model.side_files, legal)

    @property
    def given(self) -> dict[str, Path]:
        """The files of the user's folder that go with the model: tokenizer, generation config, license."""
        found = sidecar.look(self.side_folder).files if self.side_folder else {}
        return {name: path for name, path in found.items()
                if tokens.is_tokenizer(name) or name == GENERATION or sidecar.is_legal(name)}  # fmt: skip

    def incomplete(self, files: tokens.Files) -> str | None:
        """Return why the tokenizer among these files has too few tokens for the model, or None."""
        return tokens.too_few(files, rows=self.spec.vocab_size)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on what was assumed or left out."""
        found = self._gathered
        why = self.incomplete(found) if set(found.values()) & set(self.model.loose_files) else None
        left_out = f"{why}; it is left out: give --tokenizer DIR with a tokenizer that has them, or --vocab-size"
        behind = sidecar.note(self.model.sidecars.left_out)
        return (*self.model.notes, *([left_out] if why else []), *([behind] if behind else []))

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.targets)

    @property
    def peak_bytes(self) -> int:
        """Anonymous memory: for each worker a slab, gathered, cast, put in the order of the target, and a copy of it.

        With it what the slab is made of, where it is made of several models.
        """
        spec, width = self.spec, max(t.dtype.itemsize for t in self.targets)
        heads = spec.kv_channels * spec.hidden_size * width  # rotary rows are put in another order by whole heads
        return workers() * (4 * max(2 * SLAB_BYTES, heads) + self.model.working_bytes)

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
        """The dtype of most elements of the weights that are written."""
        return dtypes.most((target.dtype, target.nbytes // target.dtype.itemsize) for target in self.weights.targets)


def make(
    model: SourceModel, out: Path, *, format: Format, tp: int = 1, pp: int = 1, vpp: int = 1,
    vocab_multiple: int | None = None,
    dtype: str | None = None, shard_bytes: int = SHARD_BYTES, overwrite: bool = False,
    side_folder: Path | None = None, origin: str | None = None, dialect: str = "mcore",
    vocab_padding: Padding = "zeros", uneven: Uneven = EVEN, iteration: int | None = None, resume: bool = False,
    emit: Emit | None = None, fingerprint: str | None = None, check_room: bool = True,
) -> Plan:  # fmt: skip
    """Plan a conversion of a model to `format` at `out`. Raises a MconvError that lists all that stands against it.

    `vocab_multiple`: 128 if not given, as Megatron-LM has it; 1 for Megatron-Bridge, which does not pad on import.
    `check_room=False` plans for a disk that is elsewhere: `shortage` then says whether this one would do.
    """
    _check_values(dtype=dtype, iteration=iteration, shard_bytes=shard_bytes, format=format, dialect=dialect)
    if format == "hf" and (tp, pp, vpp, uneven) != (1, 1, 1, EVEN):
        raise LayoutError("a Hugging Face folder is not sharded by ranks: tp and pp do not apply")
    spec, family = model.spec, model.family
    family.write_config(family.expressible(spec))  # every target has one
    multiple = (1 if emit else 128) if vocab_multiple is None else vocab_multiple
    sizes = {"tp": tp, "pp": pp, "vpp": vpp, "vocab_multiple": multiple}
    layout = None if format == "hf" else target_layout(spec, family, dialect=dialect, uneven=uneven, **sizes)
    cast = DTYPES[dtype] if dtype else None
    stored = spelled(model.source, layout, format=format, dialect=dialect, copies=model.copies)
    plan = Plan(
        parts=(Part.of("", model.source, stored, cast),), model=model, out=out, format=format, dialect=dialect,
        layout=layout, dtype=cast, vocab_padding=vocab_padding, shard_bytes=shard_bytes, overwrite=overwrite,
        resume=resume, iteration=model.iteration if iteration is None else iteration,
        side_folder=side_folder, origin=origin or model.name, emit=emit, fingerprint=fingerprint,
    )  # fmt: skip
    try:
        refuse(problems(plan, check_room=check_room), doing=f"cannot write {out}")
    except OSError as error:
        raise MconvError(f"{str(out)[:80]}: {error.strerror or error}") from error
    return plan


def _check_values(*, dtype: str | None, iteration: int | None, shard_bytes: int, format: str, dialect: str) -> None:
    """Raise MconvError for a value that no conversion can have."""
    if dtype is not None and dtype not in DTYPES:
        raise MconvError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if iteration is not None and iteration < 0:
        raise MconvError(f"iteration {iteration} is negative")
    if shard_bytes < 1:
        raise MconvError(f"a shard of {shard_bytes} bytes is too small to hold anything")
    if dialect not in DIALECTS or (dialect != "mcore" and format != "mp_rank"):
        raise MconvError(
            f"dialect {dialect!r} of {format}: mp_rank can have {', '.join(DIALECTS)}, torch_dist mcore only"
        )


def spelled(
    source: Source, layout: Layout | None, *, format: Format, dialect: str = "mcore", copies: Collection[str] = ()
) -> list[Stored]:
    """Return how a format stores a source's tensors; `copies`: keys that a Hugging Face folder has beyond its own."""
    family, spec = source.family, source.spec
    if layout is None:
        return spell.hf(family, family.expressible(spec), copies)
    if format == "mp_rank":
        return spell.mp_rank_targets(DIALECTS[dialect], family, spec, layout)
    return spell.torch_dist_targets(family, spec, layout)
