"""What models must have in common to be merged, and what is refused of a recipe beside its method."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mconv.convert.blend.document import Reference
from mconv.convert.checkpoint.model import SourceModel
from mconv.errors import ConfigError, refuse
from mconv.spec import ModelSpec

DIFFER = {
    "rope": "rope", "norm_epsilon": "norm-epsilon", "max_position_embeddings": "context", "sliding_window": "window",
}  # fmt: skip
"""Fields of a spec that change no tensor's shape -> what `--allow-different` calls them."""
WORDS = {
    "vocab_size": "vocabulary", "norm_epsilon": "norm epsilon", "max_position_embeddings": "context length",
    "sliding_window": "sliding window", "tied_embeddings": "tied embeddings",
}  # fmt: skip


def check_alike(
    models: Mapping[Reference, SourceModel], first: SourceModel, allowed: Collection[str], *, joined: bool = False
) -> None:
    """Raise ConfigError that lists what differs between models so that they cannot be merged.

    `joined`: the recipe says how one vocabulary is made of theirs.
    """
    wrong = [line for one in models.values() for line in _unlike(first, one, allowed, ("vocab_size",) if joined else ())]
    if wrong and any(line.startswith("vocabulary") for line in wrong):
        wrong.append(
            "`tokenizer_source: union` in a recipe puts vocabularies together, `mconv resize MODEL --tokenizer FOLDER` "
            "makes one model's agree"
        )
    refuse(wrong, doing="these models cannot be merged", kind=ConfigError)


def _unlike(first: SourceModel, other: SourceModel, allowed: Collection[str], free: Collection[str]) -> Iterator[str]:
    fields = [one.name for one in dataclasses.fields(ModelSpec) if one.name not in ("num_layers", *free)]
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
