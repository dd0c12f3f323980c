"""Blends: the models of a recipe opened, the model that it makes of them, and what a manifest keeps of it."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mconv.convert.blend import vocabulary as vocabularies
from mconv.convert.blend.alike import check_alike
from mconv.convert.blend.document import Reference
from mconv.convert.blend.lineup import lineup
from mconv.convert.blend.recipe import Recipe
from mconv.convert.blend.request import Place, Request
from mconv.convert.blend.source import Blend
from mconv.convert.blend.vocabulary import Vocabulary
from mconv.convert.checkpoint import adapted
from mconv.convert.checkpoint import open as opening
from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.engine.plan import DTYPES
from mconv.convert.folders import recognize
from mconv.convert.folders.ignored import NOTHING, Ignored, joined
from mconv.convert.folders.kinds import MEGATRON
from mconv.convert.peft import folder as peft
from mconv.convert.sources.source import Source
from mconv.convert.sources.transplanted import Transplanted
from mconv.convert.spelling.table import Logical
from mconv.convert.surgery import made
from mconv.errors import FormatError

KEY = "blend"
"""Of a manifest: the recipe, and what it was made of."""
MODEL, ADAPTER = made.MODEL, "adapter "
"""How keys of a manifest's `merged_from` begin, before a model's name in the recipe."""


# ---- models ----------------------------------------------------------------------------------------------------------
def model_of(request: Request, *, ignore: Ignored = NOTHING, room: Path | None = None) -> SourceModel:
    """Return the model that a recipe makes, computed as it is read. Raises MconvError on what cannot be merged.

    `room` is a folder for the tokenizer's files that change; without one, they are not made.
    """
    recipe = request.recipe
    models = _opened(request, recipe.models, ignore)
    first = recipe.base_of(recipe.slices[0]) or recipe.models[0]
    model = models[first]
    vocabulary = vocabularies.vocabulary_of(recipe, models)
    check_alike(models, model, request.allowed, joined=vocabulary is not None)
    lined = lineup(recipe, {name: one.spec.num_layers for name, one in models.items()})
    rows = vocabulary.rows if vocabulary else model.spec.vocab_size
    before = {name: _states(one.source) for name, one in models.items()}
    blend = Blend(
        recipe=recipe, lineup=lined, sources=_sources(recipe, models, vocabulary), family=model.family,
        spec=dataclasses.replace(model.spec, num_layers=len(lined.layers), vocab_size=rows), seed=request.seed,
        out_dtype=DTYPES[request.dtype].name if request.dtype else None, made_of=[request.document],
        unchanged=lambda name: _check_unchanged(models[name], before[name]),
    )  # fmt: skip
    _check_zero(models)
    return SourceModel(
        source=blend, derived=True, path=model.path, format=model.format, dialect=model.dialect, layout=model.layout,
        notes=tuple(dict.fromkeys(note for one in models.values() for note in one.notes)),
        manifest={"ancestors": _ancestors(models), "copies": model.copies, "merged_from": _merged_from(request.places)},
        ignored=joined(*(one.ignored for one in models.values())), kept=partial(_kept, request, blend, models),
        working_bytes=blend.working_bytes, passes=2, listen=blend.listen,
        replaced=vocabularies.files_of(recipe, models, model, vocabulary, room) if room else {},
    )  # fmt: skip


def _sources(
    recipe: Recipe, models: Mapping[Reference, SourceModel], vocabulary: Vocabulary | None
) -> Mapping[Reference, Source]:
    if vocabulary is None:
        return {name: one.source for name, one in models.items()}
    return vocabularies.transplanted(recipe, models, vocabulary)


def _opened(request: Request, names: Sequence[Reference], ignore: Ignored) -> dict[Reference, SourceModel]:
    """Return the models of a request. Raises FormatError where hints are given and no model could need them."""
    places = [request.places[str(one)] for one in names]
    if request.hints and not any(map(_takes_hints, places)):
        given = ", ".join(f"--{name.replace('_', '-')}" for name in request.hints)
        raise FormatError(f"{given} is for Megatron checkpoints, and none of the models is one; leave it out")
    return {
        one: _open(place, request.hints if _takes_hints(place) else {}, ignore)
        for one, place in zip(names, places, strict=True)
    }


def _takes_hints(place: Place) -> bool:
    """Return whether a model is a Megatron checkpoint: other formats say all of themselves."""
    return place.adapter is None and recognize.what_is(place.path).kind in MEGATRON


def _open(place: Place, hints: Mapping[str, Any], ignore: Ignored) -> SourceModel:
    if place.adapter is not None:
        return adapted.with_base(place.adapter, place.path, ignore=ignore)
    if peft.is_adapter(place.path) or (place.path.is_dir() and opening.is_lora_run(place.path)):
        raise FormatError(
            f"{place.path} is an adapter, not a model; `mconv lora merge {place.path}` makes a model of it and its base, "
            f"and a recipe names both as BASE+{place.path}"
        )
    if not place.path.is_dir():
        raise FormatError(recognize.explain(place.path))
    return opening.open_checkpoint(place.path, ignore=ignore, **hints)


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


def _kept(
    request: Request, blend: Blend, models: Mapping[Reference, SourceModel], read: Mapping[str, str]
) -> dict[str, Any]:
    """Return what the manifest keeps of a blend, once all is read. Raises FormatError if a model has changed."""
    sources = {str(name): made.record_of(model, digests_of(blend, name)) for name, model in models.items()}
    record = {"recipe": request.document, "seed": request.seed, "dtype": request.dtype,
              "allowed": list(request.allowed), "hints": dict(request.hints)}  # fmt: skip
    return {KEY: record | {"sources": sources}}


def used(blend: Blend, name: Reference) -> list[Logical]:
    """Return the tensors of a model that a blend reads."""
    inputs = (inputs for group in blend.tensors_of.values() for inputs in group[0].inputs)
    return list(dict.fromkeys(logical for model, logical in inputs if model == name))


def digests_of(blend: Blend, name: Reference, only: Collection[Logical] | None = None) -> dict[str, str]:
    """Return the digests of a model's tensors that a blend reads (or `only` these); what it has not read is read now."""
    source, wanted = blend.sources[name], used(blend, name) if only is None else only
    own = own_of(source)
    known = {str(logical): digest for (model, logical), digest in blend.read.items()
             if model == name and not (isinstance(source, Transplanted) and source.has_rows(logical))}  # fmt: skip
    return made.digests_of(own, wanted, known)


def own_of(source: Source) -> Source:
    """Return the source of a model's own tensors, whatever vocabulary it is given."""
    return source.base if isinstance(source, Transplanted) else source


def request_of(manifest: Mapping[str, Any], folder: Path) -> Request:
    """Return the request that a manifest keeps. Raises MconvError where it is damaged, or a model is gone."""
    record, where = manifest[KEY], made.models_of(manifest, folder)
    names = [name.removeprefix(MODEL) for name in where if name.startswith(MODEL)]
    try:
        return Request(
            document=record["recipe"], seed=int(record["seed"]), dtype=record["dtype"], allowed=tuple(record["allowed"]),
            hints=dict(record.get("hints", {})),
            places={name: Place(where[MODEL + name], where.get(ADAPTER + name)) for name in names},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{folder}: its mconv.json does not say whole what it is a blend of ({error!r})") from error
