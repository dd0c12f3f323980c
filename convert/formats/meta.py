"""Meta's own files: `consolidated.NN.pth`, one archive for each model-parallel rank, beside `params.json`."""

from pathlib import Path

from mconv.convert.formats import bin
from mconv.convert.formats.tensors import Located
from mconv.errors import FormatError

PARAMS = "params.json"
PATTERN = "consolidated.*.pth"


def is_meta(folder: Path) -> bool:
    """Whether a folder looks like one of Meta's (complete or not)."""
    return any(folder.glob(PATTERN))


def key(rank: int, name: str) -> str:
    """How we name a tensor of a rank."""
    return f"consolidated.{rank:02d}/{name}"


def open_folder(folder: Path) -> tuple[dict[str, Located], int]:
    """Every tensor by key, and the number of ranks. Raises FormatError on a gap in the numbers or a damaged file."""
    files = sorted(folder.glob(PATTERN))
    tensors: dict[str, Located] = {}
    for rank in range(len(files)):
        file = folder / f"consolidated.{rank:02d}.pth"
        if not file.is_file():
            raise FormatError(f"{file} is missing: {folder} has {len(files)} files {PATTERN}, numbered from 00 on")
        tensors |= {key(rank, name): where for name, where in bin.read(file).items()}
    return tensors, len(files)
