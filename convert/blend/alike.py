"""What models must have in common to be merged, and what is refused of a recipe beside its method."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mconv.convert.blend.document import Reference
from mconv.convert.blend.recipe import Recipe
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


def check_tokenizer(recipe: Recipe) -> None:
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


def check_alike(models: Mapping[Reference, SourceModel], first: SourceModel, allowed: Collection[str]) -> None:
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
