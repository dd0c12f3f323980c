"""The checkpoint, or merge, that a checkpoint was made from and must equal."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.checkpoint import adapted
from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.folders import manifest
from mconv.convert.folders.ignored import ignored
from mconv.convert.sources.read import Progress, quiet
from mconv.errors import MconvError
from mconv.verify.checkpoints import Hints, Side, open_both
from mconv.verify.recipes.judge import recipe_of

TRAINED = "it is the result of training, so there is no earlier checkpoint that it must equal"
NO_HINTS: Hints = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A reference found in a manifest: another checkpoint, the merge of a base and adapters, or a recipe."""

    path: Path
    """Folder of the other checkpoint, of the base, or of the model itself that is judged by its recipe."""
    adapters: tuple[Path, ...] = ()
    weights: tuple[float, ...] = ()
    """A weight for each adapter."""
    recipe: str | None = None
    """The recipe in words of a model that is judged by it: a blend's, of other layers or another vocabulary."""

    @property
    def label(self) -> str | None:
        """Name of a merge or a recipe in reports; None for a checkpoint, which its folder names."""
        if self.recipe:
            return self.recipe
        return f"{_label(self.path)} merged with {' and '.join(map(_label, self.adapters))}" if self.adapters else None

    @property
    def anew(self) -> bool:
        """True if it is computed tensor by tensor when it is read, so that no program can load it."""
        return bool(self.adapters) or self.recipe is not None

    def __str__(self) -> str:
        if self.recipe:
            return f"{self.recipe}, made anew"
        merged = f" merged anew with {' and '.join(map(str, self.adapters))}" if self.adapters else ""
        return f"{self.path}{merged}"


def origin_of(checkpoint: SourceModel) -> Origin:
    """Return the earliest existing origin that this checkpoint must equal.

    The result of `lora merge`, and every conversion of it, must equal a new merge of the same base and adapters. Raises
    MconvError with the reason if there is no origin.
    """
    made = checkpoint.manifest or {}
    copied = any((checkpoint.path.resolve() / path).is_dir() for path in made.get("made_from", []))
    if not copied and (recipe := recipe_of(checkpoint)):
        return Origin(path=checkpoint.path, recipe=recipe)
    folders = {name: checkpoint.path.resolve() / path for name, path in made.get("merged_from", {}).items()}
    if {"base", "adapter"} <= folders.keys() and all(folder.is_dir() for folder in folders.values()):
        adapters = tuple(folder.resolve() for name, folder in folders.items() if name != "base")
        return Origin(path=folders["base"].resolve(), adapters=adapters, weights=_weights(checkpoint, len(adapters)))
    try:
        return Origin(path=reference_for(checkpoint))
    except MconvError as error:
        if not folders:
            raise
        gone = " and ".join(str(_resolved(folder)) for folder in folders.values() if not folder.is_dir())
        raise MconvError(f"{error}; it is a merge, and {gone or 'what it was merged from'} no longer exists") from None


def _weights(checkpoint: SourceModel, count: int) -> tuple[float, ...]:
    """Return the weights of the merge that a manifest's history tells of; 1 for each adapter if it tells none."""
    steps = [step for step in (checkpoint.manifest or {}).get("history", []) if isinstance(step, dict)]
    details = [step.get("detail") for step in steps if step.get("step") == "lora"]
    told = details[-1].get("weights") if details and isinstance(details[-1], dict) else None
    if not isinstance(told, list) or len(told) != count or not all(type(x) in (int, float) for x in told):
        return (1.0,) * count
    return tuple(told)


def open_against(origin: Origin, path: Path, hints: Hints = NO_HINTS, *, progress: Progress = quiet) -> tuple[Side, Side]:
    """Return an origin and the checkpoint to judge, both opened. A merge is computed tensor by tensor when it is read."""
    if not origin.adapters:
        return open_both(origin.path, path, hints)
    candidate = open_both(path, path, hints)[1]
    known = candidate.checkpoint.ignored
    passed = ignored(args=known.get("args", {}), config_keys=known.get("config_keys", {}))
    fresh = adapted.with_several(origin.adapters, origin.weights, origin.path, ignore=passed, progress=progress)
    return Side(checkpoint=fresh, hints={}), candidate


def _label(folder: Path) -> str:
    """Return a folder's name, preceded by its root's for the folder of an iteration."""
    return f"{folder.parent.name}/{folder.name}" if folder.name.startswith("iter_") else folder.name


def reference_for(checkpoint: SourceModel) -> Path:
    """Return the earliest existing checkpoint that this one was converted from, with no training in between.

    Raises MconvError with the reason if there is none.
    """
    made = checkpoint.manifest
    if made is None:
        raise MconvError(f"{checkpoint.path} has no {manifest.NAME}: mconv did not make it and cannot know its source")
    if not (known := made.get("made_from", [])):
        raise MconvError(f"{checkpoint.path}: {_no_source(made)}")
    folders = [checkpoint.path.resolve() / path for path in known]
    for folder in folders:
        if folder.is_dir() and not folder.samefile(checkpoint.path):
            return folder.resolve()
    chain = ", which was made from ".join(str(_resolved(folder)) for folder in reversed(folders))
    raise MconvError(f"{checkpoint.path} was made from {chain}; the source no longer exists")


def _resolved(folder: Path) -> Path:
    """Return a path without `..`, or as it is where the file system cannot be asked."""
    try:
        return folder.resolve()
    except (OSError, ValueError, RuntimeError):
        return folder


def _no_source(made: dict[str, Any]) -> str:
    steps = made.get("history", [])
    if steps and isinstance(steps[-1], dict) and steps[-1].get("step") in ("train", "lora merge"):
        return TRAINED
    if steps and isinstance(steps[-1], dict) and steps[-1].get("step") in ("layers", "resize"):
        step = steps[-1]["step"]
        return f"`mconv {step}` made another model of its source, and its {manifest.NAME} does not keep by which recipe"
    return f"its {manifest.NAME} does not say where its source is (it was published, or an older mconv made it)"
