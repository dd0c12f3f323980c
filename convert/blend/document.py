"""The values in a recipe: models, element types, layers, tokenizers; each read by the row of its key.

A mapping has a table of its keys; a key that is not in it stops.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mconv.convert.blend.methods import METHODS, Method
from mconv.errors import ConfigError

DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class Reference:
    """A model as a recipe names it: `path@revision+adapter@revision`."""

    path: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None

    def __str__(self) -> str:
        parts = ((self.path, self.revision), (self.adapter, self.adapter_revision))
        return "+".join(f"{path}@{revision}" if revision else path for path, revision in parts if path)


@dataclass(frozen=True, slots=True)
class Token:
    """Where the embedding of a token comes from."""

    kind: Literal["default", "model", "zero", "model_token"] = "default"
    model: Reference | None = None
    token: str | None = None
    token_id: int | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """The tokenizer of the merged model: of all models together, of the base or of one model."""

    source: Reference | Literal["union", "base"] = "union"
    tokens: Mapping[str, Token] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None


Keys = Mapping[str, Callable[[Any, str], Any]]
"""The keys of a mapping, and what reads the value of each; it is given the value and where that is."""


def claim(value: Any, where: str, keys: Keys, required: Sequence[str] = ()) -> dict[str, Any]:
    """Return the values of a mapping's keys; null is as good as absent. Raises ConfigError on a key without a row."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {shown(value)}, not keys with values")
    if unknown := [key for key in value if key not in keys]:
        raise ConfigError(f"{where}: unknown key {shown(unknown[0])}; known are {', '.join(keys)}")
    said = {key: one for key, one in value.items() if one is not None}
    if missing := [key for key in required if key not in said]:
        raise ConfigError(f"{where} has no {missing[0]}")
    return {key: keys[key](one, key if where == "the recipe" else f"{where}.{key}") for key, one in said.items()}


def shown(value: Any) -> str:
    return repr(value)[:60]


def anything(value: Any, where: str) -> Any:
    return value


def entries(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where} is {shown(value)}, not a list with at least one entry")
    return value


def text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where} is {shown(value)}, not text")
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{where} is {shown(value)}, not true or false")
    return value


def _count(value: Any, where: str) -> int:
    if type(value) is not int or value < 0:
        raise ConfigError(f"{where} is {shown(value)}, not a count")
    return value


def method(value: Any, where: str) -> Method:
    if not isinstance(value, str) or value not in METHODS:
        raise ConfigError(f"{where} is {shown(value)}; mconv knows {', '.join(METHODS)}")
    return METHODS[value]


def dtype(value: Any, where: str) -> str:
    name = text(value, where).removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(f"{where} is {shown(value)}; it can be {', '.join(DTYPES)}")
    return name


def reference(value: Any, where: str = "model") -> Reference:
    """Return the model that a text names. Raises ConfigError if it has more than one + or a part more than one @."""
    found = re.fullmatch(r"([^+@]+)(?:@([^+@]+))?(?:\+([^+@]+)(?:@([^+@]+))?)?", text(value, where))
    if not found:
        raise ConfigError(f"{where} is {shown(value)}; a model is PATH[@REVISION][+ADAPTER[@REVISION]]")
    return Reference(*found.groups())


def layers(value: Any, where: str) -> tuple[int, int]:
    first, last = value if isinstance(value, list) and len(value) == 2 else (None, None)
    if type(first) is not int or type(last) is not int or not 0 <= first < last:
        raise ConfigError(f"{where} is {shown(value)}; it is [FIRST, LAST + 1], as in [0, 16]")
    return first, last


def tokenizer_source(value: Any, where: str) -> Tokenizer:
    return Tokenizer(_vocabulary(value, where))


def _vocabulary(value: Any, where: str) -> Reference | Literal["union", "base"]:
    return value if value in ("union", "base") else reference(value, where)


def tokenizer(value: Any, where: str) -> Tokenizer:
    return Tokenizer(**claim(value, where, TOKENIZER))


def _tokens(value: Any, where: str) -> Mapping[str, Token]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {shown(value)}, not tokens with their sources")
    return {text(token, where): _token(one, f"{where}.{token}") for token, one in value.items()}


def _token(value: Any, where: str) -> Token:
    found = claim(value, where, TOKEN)
    return Token(**found.get("source", {}), force=found.get("force", False))


def _token_source(value: Any, where: str) -> dict[str, Any]:
    """Return the fields of a Token: a model's row of the same token, a row of another one, or zeros."""
    if not isinstance(value, dict):
        return {"kind": "model", "model": reference(value, where)}
    found = claim(value, where, ROW, required=("kind",))
    if {*found} not in ({"kind"}, {"kind", "model", "token"}, {"kind", "model", "token_id"}) or (
        (found["kind"] == "zero") != (len(found) == 1)
    ):
        raise ConfigError(f"{where}: kind is zero alone, or model_token with model and one of token and token_id")
    return found


def _kind(value: Any, where: str) -> str:
    if value not in ("zero", "model_token"):
        raise ConfigError(f"{where} is {shown(value)}; it can be zero or model_token")
    return value


ROW: Keys = {"kind": _kind, "model": reference, "token": text, "token_id": _count}
TOKEN: Keys = {"source": _token_source, "force": _flag}
TOKENIZER: Keys = {"source": _vocabulary, "tokens": _tokens, "pad_to_multiple_of": _count}
