"""Options that several commands share: a type or a group of options with its help, written once."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mconv.cli import located

if TYPE_CHECKING:
    from mconv.convert.checkpoint.model import Checkpoint as Opened
    from mconv.convert.folders.ignored import Ignored
    from mconv.shard.stages import Uneven

Flag = Annotated[bool, Parameter(negative=())]
Group = Parameter(name="*")
"""Metadata of a dataclass whose fields are options of the command itself."""
DialectName = Literal["mcore", "nvidia-legacy", "megatron-llm"]
MegatronFormat = Literal["torch_dist", "mp_rank"]
Checkpoint = Annotated[
    Path | None,
    Parameter(
        help="A Megatron checkpoint: its root, or the folder of one iteration. Default: the newest in the current folder."
    ),
]
Root = Annotated[
    Path | None, Parameter(help="The folder to make. Default: the model's name and layout, NAME-megatron-tp4-pp2.")
]
Folder = Annotated[Path | None, Parameter(help="The folder to make. Default: the model's name, NAME-hf.")]
Tp = Annotated[int, Parameter(help="Tensor-parallel size.")]
Pp = Annotated[int, Parameter(help="Pipeline-parallel size.")]
OwnTp = Annotated[int | None, Parameter(help="Tensor-parallel size. Default: the checkpoint's.")]
OwnPp = Annotated[int | None, Parameter(help="Pipeline-parallel size. Default: the checkpoint's.")]
OwnFormat = Annotated[MegatronFormat | None, Parameter(help="torch_dist or mp_rank. Default: the checkpoint's format.")]
Iteration = Annotated[
    int | None, Parameter(help="The iteration to read. Default: the one in latest_checkpointed_iteration.txt.")
]
Config = Annotated[
    Path | None,
    Parameter(help="A Hugging Face config.json for what the checkpoint's args leave open or are known to get wrong."),
]
Multiple = Annotated[
    int | None,
    Parameter(help="Pad the vocabulary to a multiple of this times tp. Default: 128; 1 with --emit megatron-bridge."),
]
Cast = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    Parameter(help="Cast the weights. Default: every tensor keeps its dtype, bit for bit."),
]
Overwrite = Annotated[bool, Parameter(help="Replace a checkpoint at --out.", negative=())]
Resume = Annotated[
    bool, Parameter(help="Continue an interrupted conversion: the same command again, with --resume.", negative=())
]
AllowNonfinite = Annotated[bool, Parameter(help="Convert weights that hold NaN or infinity.", negative=())]
Json = Annotated[bool, Parameter(help="Print one JSON object instead of text.", negative=())]


# ---- groups ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """Options on what a conversion prints, and whether it only prints."""

    dry_run: Annotated[bool, Parameter(help="Print the plan and write nothing.", negative=())] = False
    tensors: Annotated[bool, Parameter(help="List every tensor of the result.", negative=())] = False
    json: Json = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignoring:
    """Options that let unknown names pass; the manifest records them."""

    ignore_arg: Annotated[
        list[str] | None,
        Parameter(help="Ignore this arg of a Megatron checkpoint, which mconv does not know. Repeatable.", negative=()),
    ] = None
    ignore_config_key: Annotated[
        list[str] | None,
        Parameter(help="Ignore this key of a config.json, which mconv does not know. Repeatable.", negative=()),
    ] = None

    @property
    def names(self) -> "Ignored":
        """The names, as `open_checkpoint` takes them."""
        from mconv.convert.folders.ignored import ignored

        return ignored(args=self.ignore_arg or (), config_keys=self.ignore_config_key or ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Hinting(Ignoring):
    """Options on what a Megatron checkpoint may leave open about itself."""

    vocab_size: Annotated[
        int | None, Parameter(help="The vocabulary size without padding, for a checkpoint that does not record it.")
    ] = None
    dialect: Annotated[
        DialectName | None,
        Parameter(help="The program whose tensor names and row order the checkpoint has, if its files do not show it."),
    ] = None
    config: Config = None

    @property
    def values(self) -> dict[str, Any]:
        """Options of `open_checkpoint`, except the ignored names."""
        return {name: getattr(self, name) for name in ("vocab_size", "dialect", "config")}

    @property
    def hints(self) -> dict[str, Any]:
        """Options of `open_checkpoint` as plain values, which JSON carries to ranks."""
        config = str(self.config.resolve()) if self.config else None
        return {**self.values, "config": config, "ignore": self.names.to_dict()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading(Hinting):
    """Options on how a Megatron checkpoint is read."""

    iteration: Iteration = None

    def open(self, path: Path, **more: Any) -> "Opened":
        """Return the checkpoint at `path`, opened with these options and with `more` of `open_checkpoint`'s."""
        from mconv.convert.checkpoint.open import open_checkpoint

        return open_checkpoint(path, **self.values, ignore=self.names, **more)

    @property
    def values(self) -> dict[str, Any]:
        """Options of `open_checkpoint`, except the ignored names."""
        return {name: getattr(self, name) for name in ("iteration", "vocab_size", "dialect", "config")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Options on what params.json, in Meta's and Mistral's folders, leaves open."""

    max_position_embeddings: Annotated[
        int | None,
        Parameter(
            help="The model's context length, which Meta's and Mistral's params.json does not say. Default: 2048, "
            "Mistral 32768."
        ),
    ] = None
    rope_factor: Annotated[
        float | None,
        Parameter(
            help="The factor of Llama 3's rope scaling, where Meta's params.json sets use_scaled_rope without a factor."
        ),
    ] = None

    @property
    def values(self) -> dict[str, Any]:
        """Options of `open_checkpoint`."""
        return {"max_position_embeddings": self.max_position_embeddings, "rope_factor": self.rope_factor}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Options on the kind of checkpoint that a merge writes."""

    format: Annotated[Literal["hf", "torch_dist", "mp_rank"], Parameter(help="Format of the result.")] = "hf"
    tp: Tp = 1
    pp: Pp = 1
    to_dialect: Annotated[
        DialectName,
        Parameter(help="The program to write an mp_rank checkpoint for: its tensor names and row order."),
    ] = "mcore"
    make_vocab_size_divisible_by: Multiple = None
    max_shard_size: Annotated[float, Parameter(help="Largest safetensors file, in GB.")] = 5.0

    @property
    def layout(self) -> dict[str, Any]:
        """The format and layout that a result is named after."""
        return {"format": self.format, "tp": self.tp, "pp": self.pp}

    @property
    def values(self) -> dict[str, Any]:
        """Options of `plan.make`."""
        return self.layout | {
            "dialect": self.to_dialect, "vocab_multiple": self.make_vocab_size_divisible_by,
            "shard_bytes": located.shard_bytes(self.max_shard_size),
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Options on the Megatron checkpoint to write."""

    vpp: Annotated[
        int,
        Parameter(
            help="Model chunks on each pipeline rank (virtual pipeline). Only mp_rank stores them; torch_dist loads at "
            "any."
        ),
    ] = 1
    decoder_first_pipeline_num_layers: Annotated[
        int | None,
        Parameter(
            help="Layers on the first pipeline stage, which also has the embedding. Default: as many as on the others."
        ),
    ] = None
    decoder_last_pipeline_num_layers: Annotated[
        int | None,
        Parameter(
            help="Layers on the last pipeline stage, which also has the output layer. Default: as many as on the others."
        ),
    ] = None
    dtype: Cast = None
    make_vocab_size_divisible_by: Multiple = None
    vocab_padding: Annotated[
        Literal["zeros", "last-row"],
        Parameter(
            help="Contents of the padding rows of the vocabulary: zeros, or the last row repeated as Megatron-LLM and "
            "Megatron-LM's converter do."
        ),
    ] = "zeros"
    emit: Annotated[
        Literal["megatron-bridge"] | None,
        Parameter(help="Also write the files of this program, so that it can load the checkpoint directly."),
    ] = None
    overwrite: Overwrite = False
    resume: Resume = False
    allow_nonfinite: AllowNonfinite = False

    @property
    def uneven(self) -> "Uneven":
        """Numbers of layers of the first and the last stage."""
        from mconv.shard.stages import Uneven

        return Uneven(first=self.decoder_first_pipeline_num_layers, last=self.decoder_last_pipeline_num_layers)

    @property
    def values(self) -> dict[str, Any]:
        """Options of `plan.make`."""
        names = ("vpp", "dtype", "vocab_padding", "emit", "overwrite", "resume")
        return {
            **{name: getattr(self, name) for name in names},
            "uneven": self.uneven,
            "vocab_multiple": self.make_vocab_size_divisible_by,
        }


ShowGroup = Annotated[Show, Group]
IgnoringGroup = Annotated[Ignoring, Group]
ReadingGroup = Annotated[Reading, Group]
ParamsGroup = Annotated[Params, Group]
FormGroup = Annotated[Form, Group]
HintingGroup = Annotated[Hinting, Group]
TargetGroup = Annotated[Target, Group]
SHOW, IGNORING, HINTING, READING, PARAMS, FORM, TARGET = (
    Show(), Ignoring(), Hinting(), Reading(), Params(), Form(), Target()
)  # fmt: skip
"""Groups with all their defaults."""
