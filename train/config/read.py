"""Make a TrainConfig from plain values: names, types and help are read from the sections."""

import ast
import dataclasses
import difflib
import inspect
import itertools
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from mconv.errors import ConfigError, refuse
from mconv.train.config import SECTIONS, TrainConfig, aliases

WORDS = {
    "str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "list[str]": "a list of words",
    "list[int]": "a list of whole numbers", "list[float]": "a list of numbers", "dict[str, str]": "`NAME: text` lines",
}  # fmt: skip


def make(values: Mapping[str, Any]) -> TrainConfig:
    """Return a TrainConfig from a mapping. Raises ConfigError on what `checked` refuses, and on broken rules."""
    return TrainConfig(**checked(values))


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as fields hold them. Raises ConfigError on an unknown field or a value of the wrong type, by name."""
    doing = "reading the training configuration"
    refuse(unknown(values), doing=doing, kind=ConfigError)
    return typed(values, TrainConfig, help_of(), doing=doing)


def typed(values: Mapping[str, Any], of: type, helped: Mapping[str, str], *, doing: str) -> dict[str, Any]:
    """Return values as the fields of a dataclass hold them. Raises ConfigError on those of the wrong type, by name."""
    kinds = {field.name: field.type for field in dataclasses.fields(of)}
    found = {name: _plain(kinds[name], value) for name, value in values.items()}
    bad = [f"{name} is {value!r}; it must be {_expected(kinds[name])}: {helped[name]}"
           for name, value in found.items() if value is not None and not _is(value, kinds[name])]  # fmt: skip
    refuse(bad, doing=doing, kind=ConfigError)
    return found


def fitting(name: str, value: Any) -> Any:
    """Return a value as a field holds it, or None where it is not of the field's kind or there is no such field."""
    kinds = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    if name not in kinds:
        return None
    plain = _plain(kinds[name], value)
    return plain if _is(plain, kinds[name]) else None


def unknown(names: Iterable[Any]) -> list[str]:
    """Return a problem for each name that no field has, with a suggestion."""
    known = [field.name for field in dataclasses.fields(TrainConfig)]
    given = names if isinstance(names, Mapping) else None
    return [f"unknown field {name!r}{_hint(str(name), known, given)}" for name in names if name not in known]


def _hint(name: str, known: list[str], given: Mapping[Any, Any] | None) -> str:
    if told := aliases.advice(name, given):
        return f"; {told}"
    close = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _plain(kind: Any, value: Any) -> Any:
    """Return a value with liberties taken: one item for a list of one, "3e-4" and 1 as floats, a number as a word."""
    if is_map(kind) and isinstance(value, dict):
        return {name: _item("list[str]", item) for name, item in value.items()}
    if is_list(kind) and value is not None:
        return [_item(kind, item) for item in (value if isinstance(value, list) else [value])]
    if is_text(kind) and type(value) is int:
        return str(value)
    if _word(kind).startswith("float") and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _item(kind: Any, item: Any) -> Any:
    """Return an item of a list: 1 as 1.0 among fractions, and a number among words as a word."""
    number = isinstance(item, int | float) and not isinstance(item, bool)
    of = {"list[str]": str, "list[float]": float}.get(_word(kind).removesuffix(" | None"))
    return of(item) if number and of else item


def _is(value: Any, kind: Any) -> bool:
    """Return whether a value is of a field's type (the few that TrainConfig has)."""
    word = _word(kind)
    if word.startswith("Literal"):
        return value in kind.__args__
    if is_list(kind):
        element = {"list[str]": str, "list[int]": int, "list[float]": float}[word.removesuffix(" | None")]
        return isinstance(value, list) and all(isinstance(x, element) and not isinstance(x, bool) for x in value)
    if is_map(kind):
        return isinstance(value, dict) and all(isinstance(word, str) for pair in value.items() for word in pair)
    plain = {"str": str, "int": int, "float": float, "bool": bool}[word.removesuffix(" | None")]
    return isinstance(value, plain) and (plain is bool or not isinstance(value, bool))


def _expected(kind: Any) -> str:
    """Return a field's type in words."""
    word = _word(kind).removesuffix(" | None")
    return f"one of {', '.join(kind.__args__)}" if word.startswith("Literal") else WORDS[word]


def is_text(kind: Any) -> bool:
    """Return whether a field holds text, even if that looks like a number."""
    return _word(kind).startswith(("str", "Literal"))


def is_list(kind: Any) -> bool:
    """Return whether a field holds a list."""
    return _word(kind).startswith("list")


def is_map(kind: Any) -> bool:
    """Return whether a field holds texts by name."""
    return _word(kind).startswith("dict")


def _word(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind).replace("typing.", "")


@cache
def help_of() -> dict[str, str]:
    """Return the help of each field, in the order of the sections: the string below it in its class, on one line."""
    return texts(SECTIONS)


def texts(sections: Iterable[type]) -> dict[str, str]:
    """Return the help of each field of some sections: the string below it in its class, on one line."""
    return {name: text for section in sections for name, text in _texts(section)}


def _texts(section: type) -> list[tuple[str, str]]:
    body: list[Any] = ast.parse(inspect.getsource(section)).body[0].body  # type: ignore[attr-defined]
    pairs: list[Any] = [(field, text) for field, text in itertools.pairwise(body) if isinstance(field, ast.AnnAssign)]
    return [(field.target.id, " ".join(text.value.value.split())) for field, text in pairs]
