"""The places of a checkpoint and its tokenizer, by names alone: found before anything slow is imported."""

import re
from collections.abc import Iterator
from pathlib import Path

from mconv.convert.folders.kinds import TRACKER
from mconv.convert.folders.recognize import explain, iterations, names_in, what_is
from mconv.convert.folders.tokens import MODEL, makes_tokenizer
from mconv.errors import FormatError

OWN = {"meta": "a folder of Meta's", "mistral": "a folder of Mistral's"}
"""Folders of models in the files of those who made them: weights under names of their own, and params.json."""
SIDE_FOLDERS = ("hf", "tokenizer")
"""Folders of an iteration that hold the model's tokenizer: mconv's own, and Megatron-Bridge's."""


def check_path(path: Path, iteration: int | None = None) -> None:
    """Refuse a path that holds no checkpoint, by its names: what `open_checkpoint` says, before torch is imported.

    Raises FormatError. An adapter, and whatever only its contents can tell, passes.
    """
    if not path.is_dir():
        raise FormatError(explain(path))
    found = what_is(path)
    if found.kind in OWN or found.kind in ("adapter", "hf-odd"):
        return
    if not (path / "config.json").is_file():
        iteration_folder(path, iteration)
    elif not found.readable:
        raise FormatError(explain(path))


def iteration_folder(root: Path, iteration: int | None = None) -> Path:
    """Return the folder of one iteration of a Megatron root: the one named, else the tracker's."""
    if iteration is not None:
        folder = root / f"iter_{iteration:07d}"
        if not folder.is_dir():
            have = ", ".join(sorted(p.name for p in (*root.glob("iter_*"), *root.glob("release"))))
            raise FormatError(f"{folder} does not exist; {root} has {have or 'no iterations'}")
        return _known(folder)
    word = tracker_word(root)
    if word is None:
        return _known(root)
    folder = root / ("release" if word == "release" else f"iter_{int(word):07d}")
    if not folder.is_dir():
        there = iterations(root, names_in(root)) or "it has no other iteration"
        raise FormatError(f"{root / TRACKER} says {word!r}, but {folder} does not exist; {there}")
    return _known(folder)


def tracker_word(root: Path) -> str | None:
    """Return what the tracker of a root says, `release` or a number; None without one. Raises FormatError on others."""
    tracker = root / TRACKER
    if not tracker.is_file():
        return None
    word = tracker.read_text(encoding="utf-8", errors="replace").strip()
    if word != "release" and not re.fullmatch(r"\d{1,12}", word):
        raise FormatError(f"{tracker} says {word[:40]!r}; it must be an iteration number or 'release'")
    return word


def _known(folder: Path) -> Path:
    """Return the folder, if by its names it is one iteration of a Megatron's; else say what it is."""
    if what_is(folder).kind not in ("torch_dist", "mp_rank"):
        raise FormatError(explain(folder))
    return folder


def tokenizer_folder(path: Path) -> Path:
    """Return the folder that has a model's tokenizer files: `path` itself, or a place in the Megatron checkpoint there.

    Raises FormatError that says which places were looked in, for which files.
    """
    if what_is(path).kind == "unfinished":
        raise FormatError(explain(path))
    if not path.is_dir():
        raise FormatError(f"{path} is not a folder; give the model's folder, or a checkpoint that mconv made of it")
    places = list(_places(path))
    for place in places:
        if makes_tokenizer(name for name in names_in(place) if not name.endswith("/")):
            return place
    raise FormatError(
        f"no tokenizer files in {' or '.join(map(str, places))}: neither tokenizer.json nor tokenizer.model, tekken.json "
        "or vocab.json is there; give the folder of the model that the data is for, or a checkpoint that mconv made of it"
    )


def _places(path: Path) -> Iterator[Path]:
    """Yield where the tokenizer of a checkpoint may lie, the likeliest first."""
    iteration = path
    if (path / TRACKER).is_file():
        iteration = iteration_folder(path)
    candidates = [path, iteration, *(iteration / name for name in SIDE_FOLDERS)]
    if (iteration.parent / MODEL).is_file() and what_is(iteration).kind in ("torch_dist", "mp_rank"):
        candidates.append(iteration.parent)
    yield from (place for place in dict.fromkeys(candidates) if place.is_dir())
