"""Folders and sizes that the values of options lead to."""

from pathlib import Path

from mconv.errors import MconvError


def checkpoint(path: Path, iteration: int | None = None) -> Path:
    """Return the folder of a checkpoint. Refuses anything else by the names of its files, without a wait."""
    from mconv.convert.folders.locate import check_path

    path = local(path)
    check_path(path, iteration)
    return path


def side_folder(path: Path) -> Path:
    """Return the folder of tokenizer and generation files: the one inside a Megatron checkpoint, else `path`."""
    from mconv.convert.folders.recognize import READABLE, what_is

    return tokenizer(path) if what_is(path).kind in READABLE else path


def tokenizer(path: Path) -> Path:
    """Return the folder with a tokenizer's files: in a model folder, a Megatron checkpoint, or a cached repository."""
    from mconv.convert.folders.locate import tokenizer_folder

    return tokenizer_folder(local(path))


def unused(out: Path) -> Path:
    """Return the folder to make. Raises MconvError if something is there already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MconvError(f"{out} exists and is not empty; name another folder")
    return out


def shard_bytes(gigabytes: float) -> int:
    """Return the largest size of a safetensors file that --max-shard-size allows. Raises MconvError."""
    if not 0 < gigabytes < float("inf"):
        raise MconvError(f"--max-shard-size is {gigabytes}; it must be a positive number of GB")
    return max(1, int(gigabytes * 1e9))


def local(path: Path) -> Path:
    """Return the path itself, or the folder of a repository ORG/NAME that is in the Hub's cache."""
    from mconv.convert.folders import unfinished

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
    except MconvError:  # the error about a folder that does not exist names `mconv pull`
        return path
