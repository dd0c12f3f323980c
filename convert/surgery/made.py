"""A model that is made of another one: its tensors by a recipe, all else as it was."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.folders.digests import combined
from mconv.convert.sources.source import Source


def made(
    base: SourceModel, source: Source, recipe: Mapping[str, Any], *, notes: Sequence[str] = (),
    replaced: Mapping[str, Path] | None = None,
) -> SourceModel:  # fmt: skip
    """Return the model that a recipe makes of `base`: a model of its own, whose manifest keeps the recipe.

    The recipe names the base, with the digest of its weights where its own manifest has one.
    """
    before = base.manifest or {}
    digests = before.get("digests") or {}
    of = {"name": base.name, "format": base.format, **({"digest": combined(digests)} if digests else {})}
    kept: dict[str, Any] = {key: before[key] for key in ("history", "ancestors", "made_from") if key in before}
    copies = base.copies if source.spec.tied_embeddings else []
    return SourceModel(
        source=source, derived=True, path=base.path, format=base.format, dialect=base.dialect, layout=base.layout,
        iteration=base.iteration, common=base.common, notes=(*base.notes, *notes), ignored=base.ignored,
        manifest={**kept, "copies": copies}, recipe={**recipe, "of": [of]}, replaced=dict(replaced or {}),
    )  # fmt: skip
