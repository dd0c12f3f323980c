"""An opened checkpoint: which format, which architecture, and where each piece of each logical tensor lies."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.convert import bridge, dtypes, sidecar, tokens
from mconv.convert.dialects import DIALECTS
from mconv.convert.formats import bin, hf, meta
from mconv.convert.formats.dtype import DType
from mconv.convert.formats.tensors import Located
from mconv.convert.ignored import Passed
from mconv.convert.sidecar import Beside
from mconv.convert.table import Family, Logical, Stored
from mconv.errors import LayoutError, refuse
from mconv.shard.axes import volume
from mconv.shard.layout import Layout, check_tp, padded_vocab
from mconv.shard.stages import EVEN, Uneven, stage_layers
from mconv.spec import ModelSpec

if TYPE_CHECKING:
    from mconv.convert.adapter import Adapter

HUGGING = ("hf", "meta", "mistral")
"""Formats of models as they are published."""
SIDE_FOLDER = "hf"
"""Beside a Megatron checkpoint: the config, tokenizer and other files that an export gives back."""
INDICES = {".safetensors": hf.INDEX, ".bin": bin.INDEX}
CONFIGS = ("config.json", "generation_config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint. Nothing but its index and small files was read."""

    path: Path
    """The folder that holds the tensors (of a Megatron root: the iteration's)."""
    format: str
    dialect: str | None
    family: Family
    spec: ModelSpec
    layout: Layout | None
    iteration: int | None
    stored: list[Stored]
    located: dict[str, Located]
    manifest: dict[str, Any] | None
    common: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What had to be assumed when it was opened: for the user to know."""
    ignored: Passed = field(default_factory=dict)
    """What no table claims and the user lets pass, now or when it was made."""
    adapter: "Adapter | None" = None
    """A LoRA adapter that is merged into each tensor as it is read."""
    by_logical: dict[Logical, list[Stored]] = field(init=False)

    def __post_init__(self) -> None:
        found: dict[Logical, list[Stored]] = {}
        for stored in self.stored:
            found.setdefault(stored.logical, []).append(stored)
        object.__setattr__(self, "by_logical", found)

    @property
    def name(self) -> str:
        """What to call it: the folder's name, or root/iteration."""
        return self.path.name if self.format in HUGGING else f"{self.path.parent.name}/{self.path.name}"

    @property
    def importable(self) -> bool:
        """Whether it is a model as published, not a checkpoint of a Megatron."""
        return self.format in HUGGING

    @property
    def stored_spec(self) -> ModelSpec:
        """The spec with the biases that the dialect must store, needed or not."""
        return DIALECTS[self.dialect].stored_spec(self.spec) if self.dialect else self.spec

    @property
    def dtypes(self) -> set[DType]:
        return {self.located[s.key].dtype for s in self.stored}

    @property
    def dtype(self) -> DType:
        """The dtype of most of its elements."""
        return dtypes.of(self.located[stored.key] for stored in self.stored)

    @property
    def parameters(self) -> int:
        """The model's parameters: logical elements, without padding and without copies."""
        rows = self.family.logicals(self.spec)
        return sum(volume(tuple((0, n) for n in self.family.axes(x).dims(self.spec.sizes))) for x in rows)

    @property
    def copies(self) -> list[str]:
        """Tensors that the Hugging Face folder stores twice (a tied head beside the embedding), to be given back so."""
        if self.format != "hf":
            return list((self.manifest or {}).get("copies", []))
        kept = {id(stored) for group in self.by_logical.values() for stored in primary(group)}
        return [stored.key for stored in self.stored if id(stored) not in kept]

    @property
    def beside(self) -> Beside:
        """What stands beside the weights, and what of it does not travel with them."""
        if not self.importable:
            return sidecar.look(self.path / SIDE_FOLDER)
        own = {where.path.name for where in self.located.values() if isinstance(where, Located)}
        own |= {INDICES[suffix] for suffix in {Path(name).suffix for name in own} if suffix in INDICES}
        return sidecar.look(self.path, weights=own if self.format == "hf" else own | meta.SMALL)

    @property
    def side_files(self) -> dict[str, Path]:
        """The files that travel with the model, by name: its own, else those that the program which made it leaves."""
        theirs: dict[str, Path] = {}
        if not self.importable:
            found = sidecar.look(self.path / bridge.TOKENIZER).files
            theirs = {name: path for name, path in found.items() if tokens.is_tokenizer(name) or name in CONFIGS}
        own = self.beside.files
        if not any(isinstance(where, Located) for where in self.located.values()):  # weights of its own: drawn at random
            kinds = (tokens.is_tokenizer, CONFIGS.__contains__, sidecar.is_legal)
            own = {name: path for name, path in own.items() if any(of(name) for of in kinds)}
        return tokens.gather(own, theirs, {path.name: path for path in self.loose_files})

    @property
    def loose_files(self) -> list[Path]:
        """The `tokenizer.model` that Meta and Megatron-LLM keep one folder up."""
        loose = self.path.parent / tokens.MODEL
        return [loose] if self.format != "hf" and loose.is_file() else []


def primary(group: list[Stored]) -> list[Stored]:
    """One stored tensor for each piece; the others are copies of it (replicated norms, a tied head)."""
    return list({stored.piece.blocks: stored for stored in reversed(group)}.values())[::-1]


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
    """The layout with these sizes, or a LayoutError that lists everything that does not fit."""
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
