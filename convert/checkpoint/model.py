"""A model and what is known of it; a checkpoint is one that lies on disk."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from mconv.convert.checkpoint import bridge
from mconv.convert.dialects import DIALECTS
from mconv.convert.folders import sidecar, tokens
from mconv.convert.folders.ignored import Passed
from mconv.convert.folders.sidecar import Sidecars
from mconv.convert.formats import bin, hf, meta
from mconv.convert.formats.dtype import DType
from mconv.convert.formats.tensors import Located
from mconv.convert.sources.source import Source, dims_of, usual_dtype
from mconv.convert.sources.stored import StoredSource, primary
from mconv.convert.spelling.table import Family, Logical, Stored
from mconv.errors import LayoutError, refuse
from mconv.shard.layout import Layout, check_tp, padded_vocab
from mconv.shard.stages import EVEN, Uneven, stage_layers
from mconv.spec import ModelSpec

HUGGING = ("hf", "meta", "mistral")
"""Formats in which models are published."""
SIDE_FOLDER = "hf"
"""The folder within a Megatron checkpoint of config, tokenizer and other files that an export restores."""
INDICES = {".safetensors": hf.INDEX, ".bin": bin.INDEX}
CONFIGS = ("config.json", "generation_config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """A model whose tensors can be read, and everything that is known of it beside them: its provenance.

    It lies on disk, or is made as it is read: of a base and an adapter, or of nothing.
    """

    source: Source
    path: Path
    """The folder that holds the tensors (of a Megatron root: the iteration's), or those that they are made of."""
    format: str
    dialect: str | None = None
    layout: Layout | None = None
    iteration: int | None = None
    manifest: dict[str, Any] | None = None
    common: dict[str, Any] = field(default_factory=dict)
    """The common state of a Megatron checkpoint: args, iteration, and objects of the optimizer."""
    notes: tuple[str, ...] = ()
    """Notes for the user on what was assumed when the model was opened."""
    ignored: Passed = field(default_factory=dict)
    """Args and config keys that no table claims and that the user lets pass, now or when it was made."""
    derived: bool = False
    """True where its tensors are derived from those at `path` and need not equal them."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """How a derived model is made, in JSON values and without paths: kept in the manifest."""
    replaced: dict[str, Path] = field(default_factory=dict)
    """Files that travel with the model in place of those at `path`; a tokenizer, where it has one, whole."""
    passes: int = 1
    """How often each byte of it counts as progress: 2 where statistics are taken of what it is made of."""
    listen: Callable[[Callable[[int], None]], None] = lambda progress: None
    """Takes what is to be told of bytes whose statistics were taken."""
    working_bytes: int = 0
    """Bytes that each worker holds while it makes a slab, beside the slab itself."""
    kept: Callable[[Mapping[str, str]], dict[str, Any]] = lambda read: {}
    """Returns what manifests keep of it beside all this, of the digests of all tensors as they were read."""

    @property
    def family(self) -> Family:
        return self.source.family

    @property
    def spec(self) -> ModelSpec:
        return self.source.spec

    @property
    def name(self) -> str:
        """The folder's name, or root/iteration."""
        return self.path.name if self.format in HUGGING else f"{self.path.parent.name}/{self.path.name}"

    @property
    def is_pretrained(self) -> bool:
        """True for a model in a format in which models are published, False for a Megatron checkpoint."""
        return self.format in HUGGING

    @property
    def stored_spec(self) -> ModelSpec:
        """The spec with the biases that the dialect must store, needed or not."""
        return DIALECTS[self.dialect].stored_spec(self.spec) if self.dialect else self.spec

    @property
    def dtypes(self) -> set[DType]:
        return {dtype for tensor in self.source.tensors() for dtype in self.source.dtypes(tensor)}

    @property
    def dtype(self) -> DType:
        """The dtype of most of its elements."""
        return usual_dtype(self.source)

    @property
    def parameters(self) -> int:
        """The number of logical elements, without padding and without copies."""
        return sum(prod(dims_of(self.source, tensor)) for tensor in self.family.logicals(self.spec))

    @property
    def stored_tensors(self) -> int:
        """The number of stored tensors that it is read from."""
        return sum(len(self.source.pieces(tensor)) for tensor in self.source.tensors())

    @property
    def copies(self) -> list[str]:
        """Tensors that the Hugging Face folder stores twice (a tied head beside the embedding), to be given back so."""
        if self.format != "hf":
            return list((self.manifest or {}).get("copies", []))
        groups = [self.source.pieces(tensor) for tensor in self.source.tensors()]
        return [one.key for group in groups for one in group if not any(one is kept for kept in primary(group))]

    @property
    def sidecars(self) -> Sidecars:
        """The model folder's own sidecar files, and those of them that do not travel with the weights."""
        if not self.is_pretrained:
            return sidecar.look(self.path / SIDE_FOLDER)
        own = {path.name for path in self.source.files()}
        own |= {INDICES[suffix] for suffix in {Path(name).suffix for name in own} if suffix in INDICES}
        return sidecar.look(self.path, weights=own if self.format == "hf" else own | meta.SMALL)

    @property
    def side_files(self) -> dict[str, Path]:
        """The files that travel with the model, by name: its own, else those that the program which made it leaves."""
        theirs: dict[str, Path] = {}
        if not self.is_pretrained:
            found = sidecar.look(self.path / bridge.TOKENIZER).files
            theirs = {name: path for name, path in found.items() if tokens.is_tokenizer(name) or name in CONFIGS}
        own = self.sidecars.files
        if not self.source.files():  # weights of its own: drawn at random
            kinds = (tokens.is_tokenizer, CONFIGS.__contains__, sidecar.is_legal)
            own = {name: path for name, path in own.items() if any(of(name) for of in kinds)}
        return tokens.gather(self.replaced, own, theirs, {path.name: path for path in self.loose_files})

    @property
    def loose_files(self) -> list[Path]:
        """The `tokenizer.model` that Meta and Megatron-LLM keep one folder up."""
        loose = self.path.parent / tokens.MODEL
        return [loose] if self.format != "hf" and loose.is_file() else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(SourceModel):
    """A checkpoint on disk, of which the index and small files were read and no tensor."""

    source: StoredSource

    @property
    def stored(self) -> Sequence[Stored]:
        """Every stored tensor, and the piece of a logical tensor that it holds."""
        return self.source.stored

    @property
    def located(self) -> Mapping[str, Located]:
        """The place of each stored tensor's bytes, by its key."""
        return self.source.located

    @property
    def by_logical(self) -> Mapping[Logical, list[Stored]]:
        """The stored tensors of each logical tensor."""
        return self.source.groups


def target_layout(
    spec: ModelSpec,
    family: Family,
    *,
    tp: int,
    pp: int,
    vpp: int = 1,
    vocab_multiple: int = 128,
    dialect: str = "mcore",
    uneven: Uneven = EVEN,
) -> Layout:
    """Return the layout with these sizes. Raises a LayoutError that lists everything that does not fit."""
    stored = DIALECTS[dialect].stored_spec(spec)
    if min(tp, pp, vpp) < 1:
        raise LayoutError(f"tp {tp}, pp {pp}, vpp {vpp}: each must be at least 1")
    cuts = [(f"{row.name}.{leaf}", row.axes_of(leaf), row.cut) for row in family.rows for leaf in row.leaves(stored)]
    problems = check_tp(cuts, spec.sizes, tp=tp)
    try:
        stage_layers(spec.num_layers, pp=pp, vpp=vpp, uneven=uneven)
    except LayoutError as error:
        problems.append(str(error))
    refuse(problems, doing="the layout does not fit the model", kind=LayoutError)
    rows = padded_vocab(spec.vocab_size, tp=tp, multiple=vocab_multiple)
    found = Layout(tp=tp, pp=pp, vpp=vpp, padded_vocab=rows, uneven=uneven)
    refuse(DIALECTS[dialect].refusals(spec, found), doing=f"the dialect {dialect} cannot hold it", kind=LayoutError)
    return found
