"""Options that several commands share: a type with its help, written once."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from mconv.errors import MconvError

if TYPE_CHECKING:
    from mconv.convert.ignored import Ignored

Flag = Annotated[bool, Parameter(negative=())]
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
Iteration = Annotated[
    int | None, Parameter(help="The iteration to read. Default: the one in latest_checkpointed_iteration.txt.")
]
VocabSize = Annotated[
    int | None, Parameter(help="The vocabulary size without padding, for a checkpoint that does not record it.")
]
Dialect = Annotated[
    Literal["mcore", "nvidia-legacy", "megatron-llm"] | None,
    Parameter(help="The program whose tensor names and row order the checkpoint has, where its files do not tell."),
]
ToDialect = Literal["mcore", "nvidia-legacy", "megatron-llm"] | None
Config = Annotated[
    Path | None,
    Parameter(help="A Hugging Face config.json for what the checkpoint's args leave open or are known to get wrong."),
]
Padding = Annotated[
    Literal["zeros", "last-row"],
    Parameter(
        help="Contents of the padding rows of the vocabulary: zeros, or the last row repeated as Megatron-LLM and "
        "Megatron-LM's converter do."
    ),
]
Multiple = Annotated[
    int | None,
    Parameter(help="Pad the vocabulary to a multiple of this times tp. Default: 128; 1 with --emit megatron-bridge."),
]
Chunks = Annotated[
    int,
    Parameter(
        help="Model chunks on each pipeline rank (virtual pipeline). Only mp_rank stores them; torch_dist loads at any."
    ),
]
FirstStage = Annotated[
    int | None,
    Parameter(
        help="Layers on the first pipeline stage, which also has the embedding. Default: as many as on the others."
    ),
]
LastStage = Annotated[
    int | None,
    Parameter(
        help="Layers on the last pipeline stage, which also has the output layer. Default: as many as on the others."
    ),
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
MegatronFormat = Literal["torch_dist", "mp_rank"]
Json = Annotated[bool, Parameter(help="Print one JSON object instead of text.", negative=())]
Emit = Annotated[
    Literal["megatron-bridge"] | None,
    Parameter(help="Also write the files of this program, so that it can load the checkpoint directly."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """What a conversion prints, and whether it only prints."""

    dry_run: Annotated[bool, Parameter(help="Print the plan and write nothing.", negative=())] = False
    tensors: Annotated[bool, Parameter(help="List every tensor of the result.", negative=())] = False
    json: Json = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignoring:
    """Unknown names that the user lets pass; the manifest records them."""

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
        from mconv.convert.ignored import ignored

        return ignored(args=self.ignore_arg or (), config_keys=self.ignore_config_key or ())


Ignores = Annotated[Ignoring, Parameter(name="*")]
IGNORING = Ignoring()
Shown = Annotated[Show, Parameter(name="*")]
SHOW = Show()


def checkpoint(path: Path, iteration: int | None = None) -> Path:
    """Return the folder of a checkpoint, after a look at the names in it: what is none is refused without a wait."""
    from mconv.convert.locate import check_path

    path = local(path)
    check_path(path, iteration)
    return path


def side_folder(path: Path) -> Path:
    """Return the folder of a model's tokenizer and generation files: the one in a Megatron checkpoint, else `path`."""
    from mconv.convert.recognize import READABLE, what_is

    return tokenizer(path) if what_is(path).kind in READABLE else path


def tokenizer(path: Path) -> Path:
    """Return the folder with a tokenizer's files: in a model folder, a Megatron checkpoint, or a cached repository."""
    from mconv.convert.locate import tokenizer_folder

    return tokenizer_folder(local(path))


def local(path: Path) -> Path:
    """Return the path itself, or the folder of a repository ORG/NAME that is in the Hub's cache."""
    from mconv.convert import unfinished

    if (
        path.exists()
        or unfinished.at(path)
        or len(path.parts) != 2
        or path.is_absolute()
        or path.parts[0] in (".", "..", "~")
    ):
        return path
    from mconv.hub import fetch

    try:
        return fetch.resolve(str(path), offline=True)
    except MconvError:  # neither: what is said of a folder that is not there names `mconv pull`
        return path
