"""Weights in Meta's and in Mistral's own files, beside `params.json`.

consolidated.NN.pth                        one archive for each model-parallel rank (Meta; the first Mistral 7B)
consolidated.safetensors                   all tensors (Mistral)
consolidated-00001-of-0000N.safetensors    whole tensors in several files (Mistral), with or without an index
"""

import re
from pathlib import Path

from mconv.convert.formats import bin, hf
from mconv.convert.formats.tensors import Located
from mconv.errors import FormatError

PARAMS = "params.json"
PATTERN = "consolidated.*.pth"
WHOLE = "consolidated*.safetensors"

SMALL = {PARAMS, "consolidated.safetensors.index.json"}
"""Names of the small files that describe the weights."""


def key(rank: int, name: str) -> str:
    """Return mconv's key of a rank's tensor."""
    return f"consolidated.{rank:02d}/{name}"


def open_folder(folder: Path) -> tuple[dict[str, Located], int]:
    """Every tensor by key, and the number of ranks. Raises FormatError on a gap in the numbers or a damaged file."""
    files, whole = sorted(folder.glob(PATTERN)), sorted(folder.glob(WHOLE))
    if files and whole:
        raise FormatError(
            f"{folder} has both {files[0].name} and {whole[0].name}: remove the one that you do not want to convert"
        )
    if whole:
        return {key(0, name): where for name, where in _whole(folder, whole).items()}, 1
    tensors: dict[str, Located] = {}
    for rank in range(len(files)):
        file = folder / f"consolidated.{rank:02d}.pth"
        if not file.is_file():
            raise FormatError(f"{file} is missing: {folder} has {len(files)} files {PATTERN}, numbered from 00 on")
        tensors |= {key(rank, name): where for name, where in bin.read(file).items()}
    return tensors, len(files)


def _whole(folder: Path, files: list[Path]) -> dict[str, Located]:
    """The tensors of safetensors files, each of which holds whole tensors: by their numbers, none may be missing."""
    if [file.name for file in files] != ["consolidated.safetensors"]:
        counts = {
            int(m[1]) for file in files if (m := re.fullmatch(r"consolidated-\d+-of-(\d+)\.safetensors", file.name))
        }
        names = {f"consolidated-{i:05d}-of-{n:05d}.safetensors" for n in counts for i in range(1, min(n, 1000) + 1)}
        if odd := sorted(names ^ {file.name for file in files}):
            raise FormatError(f"{folder / odd[0]} is missing or too many: the files of weights are numbered from 0 on")
    tensors: dict[str, Located] = {}
    for file in files:
        found = hf.read_header(file)
        if twice := sorted(found.keys() & tensors.keys()):
            raise FormatError(f"{file} holds {twice[0]!r}, which another file has too")
        tensors |= found
    return tensors
