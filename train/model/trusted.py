"""Decide what of a torch_dist folder may be given to megatron-core's loader: it unpickles files of any origin.

Its loader hands byte objects (extra states, random states, in 0.19 the common state) to `torch.load` with
`weights_only=False`, which runs whatever they name. `common.pt` is safe there, but stops at a class that the installed
version has not, as in the args of a newer one. Up to 0.18 it finds no common state among the chunks.
"""

import io
from pathlib import Path

from torch.serialization import get_unsafe_globals_in_checkpoint

import mconv.train.megatron.imports  # noqa: F401 (with it megatron-core tells torch which of its classes are safe)
from mconv.convert.formats import torch_dist
from mconv.errors import FormatError


def reads_common(folder: Path | str) -> bool:
    """Return whether megatron-core's loader can read the common state and is safe to: a `common.pt` of known classes."""
    common = Path(folder) / torch_dist.COMMON
    return common.is_file() and not get_unsafe_globals_in_checkpoint(common)


def reads_all(folder: Path | str) -> bool:
    """Return whether the same holds for every byte object of the folder, too."""
    return reads_common(folder) and not any(
        _unsafe(chunk) for chunk in torch_dist.open_training(Path(folder))[1].values()
    )


def _unsafe(chunk: torch_dist.Chunk) -> list[str]:
    """Return the names in a byte object that torch would not load with `weights_only`."""
    with chunk.path.open("rb") as file:
        file.seek(chunk.start)
        return list(get_unsafe_globals_in_checkpoint(io.BytesIO(file.read(chunk.length))))


def check_all(folder: Path | str) -> None:
    """Raise FormatError unless megatron-core's loader can be given the whole folder."""
    if not reads_all(folder):
        raise FormatError(
            f"{folder}: its args or its states are of classes that the installed megatron-core does not have, or its "
            "container is of another version; resume with the version that saved it, or start a new run from its "
            "weights (--load, --finetune)"
        )
