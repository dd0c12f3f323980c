"""mergekit's YAML: which models are merged, slice by slice, by which method and with which parameters.

Each mapping has a table of its keys; a key that is not in it stops. `lineup.py` says what follows for a tensor.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mconv.convert.blend import settings
from mconv.convert.blend.document import (
    Keys,
    Reference,
    Tokenizer,
    anything,
    claim,
    dtype,
    entries,
    layers,
    method,
    reference,
    text,
    tokenizer,
    tokenizer_source,
)  # fmt: skip
from mconv.convert.blend.methods import Method
from mconv.convert.blend.settings import Settings
from mconv.errors import ConfigError, FormatError

LARGEST = 1 << 20
"""Bytes of a recipe; one of a hundred models has a few thousand."""


@dataclass(frozen=True, slots=True)
class Input:
    """A model, or some of its layers, as one input of a slice."""

    model: Reference
    layers: tuple[int, int] | None = None
    """First layer and the one after the last; None: all."""
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slice:
    """Layers of the merged model, and the inputs that they are merged from."""

    inputs: tuple[Input, ...]
    base: Reference | None = None
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A merge as a YAML file describes it."""

    method: Method
    slices: tuple[Slice, ...]
    base: Reference | None = None
    settings: Settings = field(default_factory=dict)
    dtype: str | None = None
    """Element type of the arithmetic; None: the narrowest that holds the models'."""
    out_dtype: str | None = None
    """Element type of the output; None: that of the arithmetic."""
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None

    def base_of(self, part: Slice) -> Reference | None:
        """Return the base model of a slice."""
        return part.base or self.base

    @property
    def models(self) -> tuple[Reference, ...]:
        """The models that are read, each once."""
        named = [one.model for part in self.slices for one in part.inputs]
        return tuple(dict.fromkeys([*named, *([self.base] if self.base else [])]))


MODEL: Keys = {"model": reference, "parameters": anything}
SOURCE: Keys = {**MODEL, "layer_range": layers}
SLICE: Keys = {"sources": anything, "base_model": reference, "parameters": anything}
KEYS: Keys = {
    "merge_method": method, "models": anything, "slices": anything, "base_model": reference, "parameters": anything,
    "dtype": dtype, "out_dtype": dtype, "tokenizer_source": tokenizer_source, "tokenizer": tokenizer,
    "chat_template": text,
}  # fmt: skip


# ---- reading ---------------------------------------------------------------------------------------------------------
def read(path: Path) -> Recipe:
    """Return the recipe in a file. Raises FormatError or ConfigError with the file's name."""
    try:
        if path.stat().st_size > LARGEST:
            raise FormatError(f"{path} has {path.stat().st_size} bytes; a recipe has at most {LARGEST}")
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise FormatError(f"{path}: not readable as YAML ({error})") from error
    try:
        return parse(document)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse(document: Any) -> Recipe:
    """Return the recipe that a YAML document says. Raises ConfigError with the name of a key that it cannot take."""
    found = claim(document, "the recipe", KEYS, required=("merge_method",))
    method, base = found["merge_method"], found.get("base_model")
    if ("models" in found) == ("slices" in found):
        raise ConfigError("a recipe has either models or slices")
    if "tokenizer" in found and "tokenizer_source" in found:
        raise ConfigError("a recipe has either tokenizer or tokenizer_source")
    slices = _models(found["models"], base, method) if "models" in found else _slices(found["slices"], method)
    recipe = Recipe(
        method=method, slices=slices, base=base, settings=settings.read(found.get("parameters"), "parameters", method),
        dtype=found.get("dtype"), out_dtype=found.get("out_dtype"), chat_template=found.get("chat_template"),
        tokenizer=found.get("tokenizer") or found.get("tokenizer_source"),
    )  # fmt: skip
    for at, part in enumerate(slices):
        _check(recipe, part, f"slices[{at}]" if "slices" in found else "models")
    return recipe


def _check(recipe: Recipe, part: Slice, where: str) -> None:
    """Raise ConfigError if a slice has a model twice, no base though the method needs one, or too few or many models."""
    method, base = recipe.method, recipe.base_of(part)
    models = [one.model for one in part.inputs]
    if twice := [model for model in models if models.count(model) > 1]:
        raise ConfigError(f"{where}: {twice[0]} is there twice")
    if method.base == "required" and base is None:
        raise ConfigError(f"{method.name} needs a base_model")
    apart = method.base != "unused" and base is not None
    if apart and base not in models:
        raise ConfigError(f"{where}: the base_model {base} is not among its models")
    least, most = method.models
    count, besides = len(models) - apart, " besides the base" if apart else ""
    if not least <= count <= most:
        wanted = str(least) if least == most else f"{least} or more" if count < least else f"at most {most}"
        raise ConfigError(f"{where}: {method.name} merges {wanted} model{'s' * (wanted != '1')}{besides}, not {count}")


def _models(value: Any, base: Reference | None, method: Method) -> tuple[Slice, ...]:
    """Return whole models as one slice; the base is the last of them if it is not named among them."""
    inputs = [_input(one, f"models[{at}]", MODEL, method) for at, one in enumerate(entries(value, "models"))]
    if base is not None and base not in [one.model for one in inputs]:
        inputs.append(Input(base))
    return (Slice(tuple(inputs)),)


def _slices(value: Any, method: Method) -> tuple[Slice, ...]:
    return tuple(_slice(one, f"slices[{at}]", method) for at, one in enumerate(entries(value, "slices")))


def _slice(value: Any, where: str, method: Method) -> Slice:
    found = claim(value, where, SLICE, required=("sources",))
    sources = enumerate(entries(found["sources"], f"{where}.sources"))
    inputs = tuple(_input(one, f"{where}.sources[{at}]", SOURCE, method) for at, one in sources)
    return Slice(inputs, found.get("base_model"), settings.read(found.get("parameters"), f"{where}.parameters", method))


def _input(value: Any, where: str, keys: Keys, method: Method) -> Input:
    found = claim(value, where, keys, required=tuple(key for key in keys if key != "parameters"))
    own = settings.read(found.get("parameters"), f"{where}.parameters", method, one_model=True)
    return Input(found["model"], found.get("layer_range"), own)
