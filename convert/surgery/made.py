"""A model that is made of others: its tensors by a recipe, all else as it was, and what its manifest keeps of both."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.folders import license, manifest
from mconv.convert.folders.digests import ALGORITHM, check_digests, combined, recorded
from mconv.convert.folders.ignored import Ignored, ignored
from mconv.convert.sources.source import Source
from mconv.convert.spelling.table import Logical
from mconv.errors import FormatError, MconvError

KEY = "surgery"
"""Of a manifest: the recipe by which a model was made of another one, and that one's digests."""
KINDS = ("layers", "resize")
MODEL = "model "
"""How keys of a manifest's `merged_from` begin, before the name of a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origins:
    """The tensors of a base that a model is made of: those that are read, and those that stay what they are."""

    used: Collection[Logical]
    """Tensors of the base that decide the result."""
    same: Mapping[Logical, Logical]
    """Tensors of the result, each a whole tensor of the base, and which."""


def made(
    base: SourceModel, source: Source, recipe: Mapping[str, Any], origins: Origins, *, notes: Sequence[str] = (),
    replaced: Mapping[str, Path] | None = None,
) -> SourceModel:  # fmt: skip
    """Return the model that a recipe makes of `base`: a model of its own, whose manifest keeps recipe and digests.

    The recipe names the base, with the digest of its weights where its own manifest has one.
    """
    before = base.manifest or {}
    digests = before.get("digests") or {}
    of = {"name": base.name, "format": base.format, **({"digest": combined(digests)} if digests else {})}
    told: dict[str, Any] = {key: before[key] for key in ("history", "ancestors", "made_from") if key in before}
    copies = base.copies if source.spec.tied_embeddings else []
    whole = {**recipe, "of": [of]}
    return SourceModel(
        source=source, derived=True, path=base.path, format=base.format, dialect=base.dialect, layout=base.layout,
        iteration=base.iteration, common=base.common, notes=(*base.notes, *notes), ignored=base.ignored,
        manifest={**told, "copies": copies, "merged_from": {f"{MODEL}{base.name}": str(base.path.resolve())}},
        recipe=whole, replaced=dict(replaced or {}), kept=partial(_kept, base, whole, origins),
    )  # fmt: skip


# ---- what a manifest keeps -------------------------------------------------------------------------------------------
def _kept(base: SourceModel, recipe: Mapping[str, Any], origins: Origins, read: Mapping[str, str]) -> dict[str, Any]:
    """Return what the manifest keeps, once all is read. Raises FormatError if the base has changed since it was made."""
    known = {str(old): read[str(new)] for new, old in origins.same.items() if str(new) in read}
    found = digests_of(base.source, origins.used, known)
    hints = {} if base.is_pretrained else {"vocab_size": base.spec.vocab_size, "dialect": base.dialect}
    return {KEY: {"recipe": dict(recipe), "hints": hints, "sources": {base.name: record_of(base, found)}}}


def digests_of(source: Source, wanted: Collection[Logical], known: Mapping[str, str]) -> dict[str, str]:
    """Return the digests of tensors, the known ones as they are, all others read now."""
    names = {str(logical) for logical in source.family.logicals(source.spec) if logical in wanted}
    found = {name: digest for name, digest in known.items() if name in names}
    if missing := names - found.keys():
        from mconv.convert.sources.read import digests

        found |= digests(source, allow_nonfinite=True, only=missing).stored
    return dict(sorted(found.items()))


def record_of(model: SourceModel, found: dict[str, str]) -> dict[str, Any]:
    """Return what a manifest keeps of a model that another one is made of; `found`: digests of what was read of it.

    Raises FormatError if it has changed since mconv made it.
    """
    told = recorded(model.path, model.manifest)
    if told.algorithm == ALGORITHM and not model.derived:
        check_digests(model.path, told.digests, found)
    before = model.manifest or {}
    origin = before.get("source", {}).get("name") or model.name
    return {"from": origin, "format": model.format, "licenses": _licenses(model), "digest": combined(found),
            "digests": found}  # fmt: skip


def _licenses(model: SourceModel) -> list[str]:
    """Return the licenses of a model: those of the models that it was made of, else those that its card names."""
    if parts := manifest.sources(model.manifest):
        return list(dict.fromkeys(name for part in parts.values() for name in part.get("licenses", ())))
    return license.of_card(model.side_files)


# ---- what a manifest says --------------------------------------------------------------------------------------------
def models_of(made: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Return the folders under `merged_from`, by their keys. Raises MconvError where one is gone."""
    where = {name: Path(os.path.normpath(folder.resolve() / path)) for name, path in made.get("merged_from", {}).items()}
    if gone := sorted(str(path) for path in where.values() if not path.is_dir()):
        raise MconvError(
            f"{folder} was made of {' and '.join(gone)}, which {'is' if len(gone) == 1 else 'are'} not there any more; "
            "put it back there to verify by the recipe"
        )
    return where


def base_of(model: SourceModel) -> SourceModel:
    """Return the model that a manifest says this one was made of, opened. Raises MconvError where it is gone."""
    from mconv.convert.checkpoint.open import open_checkpoint

    record = (model.manifest or {})[KEY]
    places = models_of(model.manifest or {}, model.path)
    try:
        (folder,) = (path for name, path in places.items() if name.startswith(MODEL))
        hints = {key: value for key, value in record["hints"].items() if key in ("vocab_size", "dialect")}
    except (KeyError, ValueError, AttributeError) as error:
        raise FormatError(f"{model.path}: its mconv.json does not say what it was made of ({error!r})") from error
    return open_checkpoint(folder, ignore=passed(model), **hints)


def passed(model: SourceModel) -> Ignored:
    """Return the names that were let pass when a model was made."""
    return ignored(args=model.ignored.get("args", {}), config_keys=model.ignored.get("config_keys", {}))
