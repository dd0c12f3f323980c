"""What a checkpoint must equal."""

from pathlib import Path
from typing import Any

from mconv.convert import manifest
from mconv.convert.checkpoint import Checkpoint
from mconv.errors import MconvError


def reference_for(checkpoint: Checkpoint) -> Path:
    """The checkpoint that this one was made from and must equal: the earliest that is still there.

    Conversions alone lie between the two, never a training. Raises MconvError with the reason where there is none.
    """
    made = checkpoint.manifest
    if made is None:
        raise MconvError(f"{checkpoint.path} has no {manifest.NAME}: mconv did not make it, and cannot know its source")
    if not (known := made.get("made_from", [])):
        raise MconvError(f"{checkpoint.path}: {_no_source(made)}")
    places = [checkpoint.path.resolve() / path for path in known]
    for place in places:
        if place.is_dir() and not place.samefile(checkpoint.path):
            return place.resolve()
    gone = ", and that from ".join(str(_plain(place)) for place in reversed(places))
    raise MconvError(f"{checkpoint.path} was made from {gone}: not there any more")


def _plain(place: Path) -> Path:
    """Without `..`, where its folder can be looked at."""
    try:
        return place.resolve()
    except (OSError, ValueError, RuntimeError):
        return place


def _no_source(made: dict[str, Any]) -> str:
    steps = made.get("history", [])
    if steps and isinstance(steps[-1], dict) and steps[-1].get("step") in ("train", "lora merge"):
        return "it is the result of a training, and equal to nothing that was there before"
    return f"its {manifest.NAME} does not say where its source lies (it was published, or is of an older mconv)"
