"""The Hugging Face name of a LoRA run's base model: its repository on the Hub, or its folder."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mconv.convert.folders import manifest
from mconv.convert.folders.recognize import what_is
from mconv.convert.folders.staging import PULLED
from mconv.convert.formats.jsonfile import read_json
from mconv.errors import MconvError

CHANGED = ("train", "lora", "lora merge", "layers", "resize", "blend")
"""Steps after which a model is another one than the one that it was made from."""
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)", re.ASCII)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def of_run(folder: Path, base: Mapping[str, str]) -> str:
    """Return ORG/NAME or the folder of the Hugging Face model that a run's base is.

    `folder` is the run's checkpoint, `base` what its args say of the base (name, path as seen from the run's folder).
    Raises MconvError if the model is unknown.
    """
    place = _resolved(folder.parent, base["path"])
    made, changed = _lineage(folder, base, place)
    first = [] if changed else [_resolved(seen_from, path) for seen_from, path in made[:1]]
    known = [*map(_on_the_hub, (*first, place)), *([] if changed else [_repository(folder, place)])]
    known += map(_folder, (place, *first))
    if found := next((name for name in known if name), None):
        return found
    why = "its manifest does not name the Hugging Face model that it was made from"
    if first:
        why = f"it was made from {first[0]}, which is not a Hugging Face folder any more"
    if changed:
        why = "it was trained, so it is not a published model; `mconv meg2hf` makes its Hugging Face folder"
    raise MconvError(
        f"{folder} was trained on {base['name']}, and PEFT needs the Hugging Face name of that: {why}. Give it with "
        "--base-model ORG/NAME (or a folder)"
    )


Places = Sequence[tuple[Path, str]]
"""Paths, each as seen from a folder."""


def _lineage(run: Path, base: Mapping[str, str], place: Path) -> tuple[Places, bool]:
    """Return where the base comes from, the earliest first, and whether it was trained on the way."""
    own = _manifest(place)
    if own is not None:
        known = own.get("ancestors") or own.get("made_from") or []
        return [(place, path) for path in known], _changed(own.get("history", []))
    made = _manifest(run) or {}
    before = []
    for step in made.get("history", []):  # of the run: up to the training that took the base
        if step.get("step") == "train" and step.get("detail", {}).get("from") == base["name"]:
            break
        before.append(step)
    return [(run, path) for path in made.get("ancestors", [])], _changed(before)


def _changed(history: Sequence[Any]) -> bool:
    return any(isinstance(step, dict) and step.get("step") in CHANGED for step in history)


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        return manifest.read(folder)
    except MconvError:
        return None


def _repository(run: Path, place: Path) -> str | None:
    """Return the repository that a manifest names as the source."""
    source: Mapping[str, Any] = (_manifest(place) or _manifest(run) or {}).get("source", {})
    name = source.get("name")
    return name if source.get("format") == "hf" and isinstance(name, str) and _REPOSITORY.fullmatch(name) else None


def _on_the_hub(folder: Path) -> str | None:
    """Return the repository that a folder of the Hub's cache, or one that `mconv pull` made, is of."""
    cached = next((found for part in folder.parts if (found := _CACHED.fullmatch(part))), None)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    try:
        name = read_json(folder / PULLED).get("repo") if what_is(folder).kind == "hf" else None
    except MconvError:
        return None
    return name if isinstance(name, str) and _REPOSITORY.fullmatch(name) else None


def _folder(folder: Path) -> str | None:
    return str(folder) if what_is(folder).kind == "hf" else None


def _resolved(folder: Path, path: str) -> Path:
    try:
        return (folder.resolve() / path).resolve()
    except (OSError, ValueError, RuntimeError):
        return folder / "?"
