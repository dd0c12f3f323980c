"""Blends: a recipe with the places of its models, the model that it makes of them, and what a manifest keeps of it."""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from mconv.convert import adapted, opening, peft, recognize
from mconv.convert.blend import recipe as recipes
from mconv.convert.blend.document import Reference
from mconv.convert.blend.lineup import lineup
from mconv.convert.blend.recipe import Recipe
from mconv.convert.blend.source import Blend
from mconv.convert.checkpoint import SourceModel
from mconv.convert.digests import ALGORITHM, check_digests, combined, recorded
from mconv.convert.engine.plan import DTYPES
from mconv.convert.ignored import NOTHING, Ignored, ignored, joined
from mconv.convert.sources.source import Source
from mconv.convert.table import Logical
from mconv.errors import ConfigError, FormatError, MconvError, refuse
from mconv.spec import ModelSpec

KEY = "blend"
"""Of a manifest: the recipe, and what it was made of."""
MODEL, ADAPTER = "model ", "adapter "
"""How keys of a manifest's `merged_from` begin, before a model's name in the recipe."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model lies: a checkpoint, and the adapter that is applied to it."""

    path: Path
    adapter: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A recipe whose models have names of their own, and the places of these."""

    document: dict[str, Any]
    places: Mapping[str, Place]
    seed: int = 0
    dtype: str | None = None
    """Element type of the result (fp32, bf16, fp16); None: the recipe's, or the models'."""
    allowed: tuple[str, ...] = ()
    """What may differ between the models, by the names of `DIFFER`."""

    @property
    def recipe(self) -> Recipe:
        return recipes.parse(self.document)

    @property
    def title(self) -> str:
        """What to call it in a card: its method and its models."""
        return f"{self.document['merge_method']} of {', '.join(self.places)}"


def check_out(order: Order, out: Path) -> None:
    """Raise MconvError where the result would lie in, above or in place of a model that it is made of."""
    for place in order.places.values():
        for path in (place.path, *([place.adapter] if place.adapter else [])):
            source, target = path.resolve(), out.resolve()
            if source.is_relative_to(target) or target.is_relative_to(source):
                raise MconvError(
                    f"--out {out} is, contains or lies in a model of the blend, {path}; choose another folder"
                )


# ---- recipes ---------------------------------------------------------------------------------------------------------
def from_file(path: Path, find: Callable[[Path], Path], **options: Any) -> Order:
    """Return what a recipe's file orders. `find` returns the folder that a model's path means.

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
    return Order(document=renamed, places=places, **options)


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


# ---- models ----------------------------------------------------------------------------------------------------------
DIFFER = {
    "rope": "rope", "norm_epsilon": "norm-epsilon", "max_position_embeddings": "context", "sliding_window": "window",
}  # fmt: skip
"""Fields of a spec that change no tensor's shape -> what `--allow-different` calls them."""
WORDS = {
    "vocab_size": "vocabulary", "norm_epsilon": "norm epsilon", "max_position_embeddings": "context length",
    "sliding_window": "sliding window", "tied_embeddings": "tied embeddings",
}  # fmt: skip


def model_of(order: Order, *, ignore: Ignored = NOTHING) -> SourceModel:
    """Return the model that a recipe makes, computed as it is read. Raises MconvError on what cannot be merged."""
    recipe = order.recipe
    _check_tokenizer(recipe)
    models = {one: _open(order.places[str(one)], ignore) for one in recipe.models}
    first = recipe.base_of(recipe.slices[0]) or recipe.models[0]
    model = models[first]
    _check_alike(models, model, order.allowed)
    lined = lineup(recipe, {name: one.spec.num_layers for name, one in models.items()})
    before = {name: _states(one.source) for name, one in models.items()}
    blend = Blend(
        recipe=recipe, lineup=lined, sources={name: one.source for name, one in models.items()}, family=model.family,
        spec=dataclasses.replace(model.spec, num_layers=len(lined.layers)), seed=order.seed,
        out_dtype=DTYPES[order.dtype].name if order.dtype else None, made_of=[order.document],
        unchanged=lambda name: _check_unchanged(models[name], before[name]),
    )  # fmt: skip
    _check_zero(models)
    return SourceModel(
        source=blend, derived=True, path=model.path, format=model.format, dialect=model.dialect, layout=model.layout,
        notes=tuple(dict.fromkeys(note for one in models.values() for note in one.notes)),
        manifest={"ancestors": _ancestors(models), "copies": model.copies, "merged_from": _merged_from(order.places)},
        ignored=joined(*(one.ignored for one in models.values())), kept=partial(_kept, order, blend, models),
    )  # fmt: skip


def _open(place: Place, ignore: Ignored) -> SourceModel:
    if place.adapter is not None:
        return adapted.with_base(place.adapter, place.path, ignore=ignore)
    if peft.is_adapter(place.path) or (place.path.is_dir() and opening.is_lora_run(place.path)):
        raise FormatError(
            f"{place.path} is an adapter, not a model; `mconv lora merge {place.path}` makes a model of it and its base, "
            f"and a recipe names both as BASE+{place.path}"
        )
    if not place.path.is_dir():
        raise FormatError(recognize.explain(place.path))
    return opening.open_checkpoint(place.path, ignore=ignore)


def _check_tokenizer(recipe: Recipe) -> None:
    """Raise ConfigError for what a recipe asks of tokenizers: the result has that of its base, or of its first model."""
    told = recipe.tokenizer
    base = recipe.base_of(recipe.slices[0]) or recipe.models[0]
    if told and (told.tokens or told.pad_to_multiple_of or told.source not in ("base", base)):
        raise ConfigError(
            f"the recipe's tokenizer is not {base}'s: vocabularies are not put together here; make them agree first "
            "(`mconv resize MODEL --tokenizer FOLDER`), and leave tokenizer_source out"
        )
    if recipe.chat_template:
        raise ConfigError(
            "chat_template: no template is written; leave it out, and give --tokenizer a folder whose tokenizer has it"
        )


def _check_alike(models: Mapping[Reference, SourceModel], first: SourceModel, allowed: Collection[str]) -> None:
    """Raise ConfigError that lists what differs between models so that they cannot be merged."""
    wrong = [line for one in models.values() for line in _unlike(first, one, allowed)]
    if wrong and any(line.startswith("vocabulary") for line in wrong):
        wrong.append("`mconv resize MODEL --tokenizer FOLDER` makes vocabularies agree")
    refuse(wrong, doing="these models cannot be merged", kind=ConfigError)


def _unlike(first: SourceModel, other: SourceModel, allowed: Collection[str]) -> Iterator[str]:
    fields = [one.name for one in dataclasses.fields(ModelSpec) if one.name != "num_layers"]
    for name in fields:
        a, b = getattr(first.spec, name), getattr(other.spec, name)
        may = DIFFER.get(name) if name != "max_position_embeddings" or first.spec.position != "learned" else None
        if a != b and may not in allowed:
            shown = _rope(a, b) if name == "rope" else f"is {a} in {first.path} and {b} in {other.path}"
            advice = f"; --allow-different {may} takes that of {first.path}" if may else ""
            yield f"{WORDS.get(name, name)} {shown}{advice}"


def _rope(a: Any, b: Any) -> str:
    names = [one.name for one in dataclasses.fields(a)]
    apart = ((n, getattr(a, n), getattr(b, n)) for n in names if getattr(a, n) != getattr(b, n))
    return "differs: " + ", ".join(f"{name} is {one} and {other}" for name, one, other in apart)


def _check_zero(models: Mapping[Reference, SourceModel]) -> None:
    """Raise FormatError where a model stores what its architecture has no place for, and that is not zero."""
    for one in models.values():
        extra = set(one.source.tensors()) - set(one.family.logicals(one.spec))
        for tensor in sorted(extra, key=str):
            from mconv.convert.sources.checks import check_zero
            from mconv.convert.sources.read import slabs

            for slab in slabs(one.source, tensor):
                check_zero(one.source, tensor, slab)


States = Mapping[Path, tuple[int, int]]
"""Size and time of change of files."""


def _states(source: Source) -> States:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in source.files()}


def _check_unchanged(model: SourceModel, before: States) -> None:
    try:
        now = _states(model.source)
    except OSError as error:
        raise FormatError(f"{error.filename} is gone, while {model.path} was read; start again") from error
    if changed := sorted(path for path, state in now.items() if before[path] != state):
        raise FormatError(f"{changed[0]} has changed while it was read; nothing was written: start again")


# ---- what a manifest keeps -------------------------------------------------------------------------------------------
def _ancestors(models: Mapping[Reference, SourceModel]) -> list[str]:
    known = [(one.path.resolve(), (one.manifest or {}).get("ancestors", [])) for one in models.values()]
    return list(dict.fromkeys(str(path / name) for path, names in known for name in (*names, ".")))


def _merged_from(places: Mapping[str, Place]) -> dict[str, str]:
    found = {f"{MODEL}{name}": str(place.path.resolve()) for name, place in places.items()}
    return found | {f"{ADAPTER}{n}": str(place.adapter.resolve()) for n, place in places.items() if place.adapter}


def _kept(order: Order, blend: Blend, models: Mapping[Reference, SourceModel]) -> dict[str, Any]:
    """Return what the manifest keeps of a blend, once all is read. Raises FormatError if a model has changed."""
    sources = {}
    for name, model in models.items():
        found = digests_of(blend, name)
        told = recorded(model.path, model.manifest)
        if told.algorithm == ALGORITHM and not model.derived:
            check_digests(model.path, told.digests, found)
        origin = (model.manifest or {}).get("source", {}).get("name") or model.name
        sources[str(name)] = {"from": origin, "format": model.format, "digest": combined(found), "digests": found}
    record = {"recipe": order.document, "seed": order.seed, "dtype": order.dtype, "allowed": list(order.allowed)}
    return {KEY: record | {"sources": sources}}


def used(blend: Blend, name: Reference) -> list[Logical]:
    """Return the tensors of a model that a blend reads."""
    inputs = (inputs for group in blend.tensors_of.values() for inputs in group[0].inputs)
    return list(dict.fromkeys(logical for model, logical in inputs if model == name))


def digests_of(blend: Blend, name: Reference, only: Collection[Logical] | None = None) -> dict[str, str]:
    """Return the digests of a model's tensors that a blend reads (or `only` these); what it has not read is read now."""
    wanted = used(blend, name) if only is None else only
    found = {str(logical): blend.read[name, logical] for logical in wanted if (name, logical) in blend.read}
    if missing := {str(logical) for logical in wanted} - found.keys():
        from mconv.convert.sources.read import digests

        found |= digests(blend.sources[name], allow_nonfinite=True, only=missing).stored
    return dict(sorted(found.items()))


def order_of(made: Mapping[str, Any], folder: Path) -> Order:
    """Return the order that a manifest keeps. Raises MconvError where it is damaged, or a model is not there any more."""
    record = made[KEY]
    places = made.get("merged_from", {})
    where = {name: folder.resolve() / path for name, path in places.items()}
    if gone := sorted(str(path) for path in where.values() if not path.is_dir()):
        raise MconvError(f"{folder} is a blend, and {' and '.join(gone)} is not there any more")
    names = [name.removeprefix(MODEL) for name in places if name.startswith(MODEL)]
    try:
        return Order(
            document=record["recipe"], seed=int(record["seed"]), dtype=record["dtype"], allowed=tuple(record["allowed"]),
            places={name: Place(where[MODEL + name], where.get(ADAPTER + name)) for name in names},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{folder}: its mconv.json does not say whole what it is a blend of ({error!r})") from error


def passed(model: SourceModel) -> Ignored:
    """Return the names that were let pass when a model was made."""
    return ignored(args=model.ignored.get("args", {}), config_keys=model.ignored.get("config_keys", {}))
