"""Options that several commands share: a type with its help, so that each is said once."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from mconv.convert.ignored import Ignored

Flag = Annotated[bool, Parameter(negative=())]
Checkpoint = Annotated[
    Path | None,
    Parameter(help="A Megatron root, or the folder of one iteration. Default: the newest in the current folder."),
]
Root = Annotated[
    Path | None, Parameter(help="The Megatron root to make. Default: the model's name and layout, NAME-megatron-tp4-pp2.")
]
Folder = Annotated[Path | None, Parameter(help="The folder to make. Default: the model's name, NAME-hf.")]
Iteration = Annotated[int | None, Parameter(help="Which iteration. Default: the one that the tracker names.")]
VocabSize = Annotated[int | None, Parameter(help="The true vocabulary size, for checkpoints that do not know it.")]
Dialect = Annotated[
    Literal["mcore", "nvidia-legacy", "megatron-llm"] | None,
    Parameter(help="Whose names and order of rows the checkpoint has, where it does not tell by itself."),
]
ToDialect = Literal["mcore", "nvidia-legacy", "megatron-llm"] | None
Config = Annotated[
    Path | None,
    Parameter(help="A config.json that settles what the checkpoint itself leaves open or cannot be trusted for."),
]
Padding = Annotated[
    Literal["zeros", "last-row"],
    Parameter(help="What rows past the true vocabulary hold; the ancestors repeated the last row."),
]
Multiple = Annotated[
    int | None,
    Parameter(
        help="The vocabulary is padded with zero rows to a multiple of this times tp. Default: 128; 1 with --emit "
        "megatron-bridge."
    ),
]
Chunks = Annotated[int, Parameter(help="Model chunks on each pipeline stage; mp_rank numbers layers by it.")]
FirstStage = Annotated[
    int | None, Parameter(help="Layers of the first pipeline stage, where it is not to have as many as the others.")
]
LastStage = Annotated[int | None, Parameter(help="Layers of the last pipeline stage, likewise.")]
Cast = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    Parameter(help="Cast the weights. Default: every tensor keeps its own dtype, bit for bit."),
]
Overwrite = Annotated[bool, Parameter(help="Replace a checkpoint that is already there.", negative=())]
Resume = Annotated[
    bool, Parameter(help="Continue the same conversion where a killed run left it; else start anew.", negative=())
]
AllowNonfinite = Annotated[bool, Parameter(help="Convert weights that hold NaN or infinity.", negative=())]
MegatronFormat = Literal["torch_dist", "mp_rank"]
Json = Annotated[bool, Parameter(help="One JSON object instead of text.", negative=())]
Emit = Annotated[
    Literal["megatron-bridge"] | None,
    Parameter(help="Write this program's own files too, so that it loads the checkpoint as one of its own."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """What a conversion shows, and whether it shows it instead of doing it."""

    dry_run: Annotated[bool, Parameter(help="Print the plan and write nothing.", negative=())] = False
    tensors: Annotated[bool, Parameter(help="List every tensor of the result.", negative=())] = False
    json: Json = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignoring:
    """Names that no table claims and that the user lets pass; the manifest keeps them."""

    ignore_arg: Annotated[
        list[str] | None,
        Parameter(help="Pass over this arg of a Megatron checkpoint, which no table claims. Repeatable.", negative=()),
    ] = None
    ignore_config_key: Annotated[
        list[str] | None,
        Parameter(help="Pass over this key of a config.json, which no table claims. Repeatable.", negative=()),
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
    """The folder itself, or that of a repository in the Hub's cache."""
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

    return fetch.resolve(str(path), offline=True)
