"""What a checkpoint must equal."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert import adapted, blended, manifest
from mconv.convert.checkpoint import SourceModel
from mconv.convert.ignored import ignored
from mconv.convert.sources.read import Progress, quiet
from mconv.errors import MconvError
from mconv.verify.sides import Said, Side, open_both

TRAINED = "it is the result of training, so there is no earlier checkpoint that it must equal"
PLAIN: Said = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a checkpoint must equal: another one, the merge of a base and an adapter, or what its own recipe makes."""

    path: Path
    """The other one, the base, or a blend itself."""
    adapter: Path | None = None
    recipe: str | None = None
    """The method and the models of a blend."""

    @property
    def named(self) -> str | None:
        """What to call it beside its folder's own name, where that does not say all."""
        if self.recipe:
            return self.recipe
        return f"{_called(self.path)} merged with {_called(self.adapter)}" if self.adapter else None

    @property
    def anew(self) -> bool:
        """Whether it is made anew, tensor by tensor, so that no program can load it."""
        return self.adapter is not None or self.recipe is not None

    def __str__(self) -> str:
        if self.recipe:
            return f"{self.recipe}, made anew"
        return f"{self.path} merged anew with {self.adapter}" if self.adapter else str(self.path)


def origin_of(checkpoint: SourceModel) -> Origin:
    """Return the earliest that is still there of what this checkpoint was made from and must equal.

    What `lora merge` made, and conversions of it, equal a merge made anew of the same two. Raises MconvError with the
    reason where there is nothing.
    """
    made = checkpoint.manifest or {}
    if "blend" in made and not any((checkpoint.path.resolve() / path).is_dir() for path in made.get("made_from", [])):
        return Origin(path=checkpoint.path, recipe=blended.request_of(made, checkpoint.path).title)
    merged = (checkpoint.manifest or {}).get("merged_from", {})
    places = {name: checkpoint.path.resolve() / merged[name] for name in ("base", "adapter") if name in merged}
    if len(places) == 2 and all(place.is_dir() for place in places.values()):
        return Origin(path=places["base"].resolve(), adapter=places["adapter"].resolve())
    try:
        return Origin(path=reference_for(checkpoint))
    except MconvError as error:
        if not places:
            raise
        gone = " and ".join(str(_plain(place)) for place in places.values() if not place.is_dir())
        raise MconvError(
            f"{error}; it is a merge, and {gone or 'what it was merged from'} is not there any more"
        ) from None


def sides(origin: Origin, path: Path, said: Said = PLAIN, *, progress: Progress = quiet) -> tuple[Side, Side]:
    """Return an origin and what is judged by it, opened; a merge is made in memory, tensor by tensor as it is read."""
    if origin.adapter is None:
        return open_both(origin.path, path, said)
    candidate = open_both(path, path, said)[1]
    known = candidate.checkpoint.ignored
    passed = ignored(args=known.get("args", {}), config_keys=known.get("config_keys", {}))
    fresh = adapted.with_base(origin.adapter, origin.path, ignore=passed, progress=progress)
    return Side(checkpoint=fresh, said={}), candidate


def _called(place: Path) -> str:
    """A folder's name, or that of its root with it."""
    return f"{place.parent.name}/{place.name}" if place.name.startswith("iter_") else place.name


def reference_for(checkpoint: SourceModel) -> Path:
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
        return TRAINED
    return f"its {manifest.NAME} does not say where its source lies (it was published, or is of an older mconv)"
