"""A blend as it is asked for: a recipe, the places of its models, and what else decides the result."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mconv.convert.blend import recipe as recipes
from mconv.convert.blend.recipe import Recipe
from mconv.errors import ConfigError, MconvError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model lies: a checkpoint, and the adapter that is applied to it."""

    path: Path
    adapter: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A recipe whose models have names of their own, and the places of these."""

    document: dict[str, Any]
    places: Mapping[str, Place]
    seed: int = 0
    dtype: str | None = None
    """Element type of the result (fp32, bf16, fp16); None: the recipe's, or the models'."""
    allowed: tuple[str, ...] = ()
    """What may differ between the models, by the names of `DIFFER`."""
    hints: Mapping[str, Any] = field(default_factory=dict)
    """Options of `open_checkpoint` on what the Megatron checkpoints among the models leave open."""

    @property
    def recipe(self) -> Recipe:
        return recipes.parse(self.document)

    @property
    def title(self) -> str:
        """Return its name in a card: the method and the models."""
        return f"{self.document['merge_method']} of {', '.join(self.places)}"


def check_out(request: Request, out: Path) -> None:
    """Raise MconvError where the result would lie in, above or in place of a model that it is made of."""
    for place in request.places.values():
        for path in (place.path, *([place.adapter] if place.adapter else [])):
            source, target = path.resolve(), out.resolve()
            if source.is_relative_to(target) or target.is_relative_to(source):
                raise MconvError(
                    f"--out {out} is, contains or lies in a model of the blend, {path}; choose another folder"
                )


def from_file(path: Path, find: Callable[[Path], Path], **options: Any) -> Request:
    """Return what the file of a recipe asks for. `find` returns the folder that a model's path means.

    A relative path is looked for from here, then from beside the recipe. Raises FormatError or ConfigError.
    """
    models = recipes.read(path).models
    if pinned := [one for one in models if one.revision or one.adapter_revision]:
        raise ConfigError(f"{path}: {pinned[0]}: a revision is not looked up; `mconv pull` it, and name the folder")
    names = named([one.path for one in models])
    places = {
        name: Place(find(_near(one.path, path.parent)), find(_near(one.adapter, path.parent)) if one.adapter else None)
        for name, one in zip(names, models, strict=True)
    }
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    renamed = _renamed(document, dict(zip(map(str, models), names, strict=True)))
    return Request(document=renamed, places=places, **options)


def _near(path: str, folder: Path) -> Path:
    here, beside = Path(path).expanduser(), folder / path
    return beside if not here.exists() and beside.exists() else here


def named(paths: Sequence[str | Path]) -> list[str]:
    """Return a name for each of some models: its folder's, with the root's for an iteration; a number where two agree."""
    found: list[str] = []
    for path in map(Path, paths):
        resolved = path.resolve()
        own = resolved.name if path.name in ("", "..") else path.name
        whole = f"{resolved.parent.name}/{own}" if re.fullmatch(r"release|iter_\d+", own) else own
        plain = re.sub(r"[+@]", "-", whole)
        found.append(next(name for name in _tries(plain) if name not in found))
    return found


def _tries(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}-{number}" for number in range(2, 1 << 20))


NAMES_A_MODEL = ("model", "base_model", "tokenizer_source", "source")


def _renamed(value: Any, names: Mapping[str, str], key: str = "") -> Any:
    """Return a recipe's document with other names of its models."""
    if isinstance(value, dict):
        return {name: _renamed(one, names, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_renamed(one, names) for one in value]
    return names.get(str(value), value) if key in NAMES_A_MODEL else value
