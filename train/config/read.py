"""A TrainConfig from a YAML file and flags: names, types and help, all read off the sections."""

import ast
import dataclasses
import difflib
import inspect
import itertools
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mconv.errors import ConfigError, refuse
from mconv.train.config import SECTIONS, TrainConfig


def read_yaml(path: Path) -> dict[str, Any]:
    """The fields that a YAML file sets. Raises ConfigError on a key that TrainConfig does not have, by name."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `field: value` lines, found a {type(values).__name__}")
    known = [field.name for field in dataclasses.fields(TrainConfig)]
    bad = [f"{path}: unknown field {name!r}{_hint(str(name), known)}" for name in values if name not in known]
    refuse(bad, doing=f"reading {path}", kind=ConfigError)
    return values


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def make(values: Mapping[str, Any]) -> TrainConfig:
    """A TrainConfig from a mapping. Raises ConfigError on a missing field or a value of the wrong type, by name."""
    fields = dataclasses.fields(TrainConfig)
    required = [f.name for f in fields if f.default is dataclasses.MISSING]
    bad = [f"{name} is not set: {help_of()[name]}" for name in required if values.get(name) is None]
    values = {name: _plain(name, value) for name, value in values.items()}
    kinds = {f.name: f.type for f in fields}
    bad += [f"{name} is {value!r}; expected {_word(kinds[name])}" for name, value in values.items()
            if value is not None and not _is(value, kinds[name])]  # fmt: skip
    refuse(bad, doing="reading the training configuration", kind=ConfigError)
    return TrainConfig(**values)


def _plain(name: str, value: Any) -> Any:
    """YAML's liberties: one prefix for a list of one, 3e-4 read as text, 1 for 1.0."""
    kind = {f.name: f.type for f in dataclasses.fields(TrainConfig)}[name]
    if is_list(kind) and value is not None:
        return [_item(kind, item) for item in (value if isinstance(value, list) else [value])]
    if _word(kind).startswith("float") and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _item(kind: Any, item: Any) -> Any:
    """An item of a list: 1 for 1.0 among fractions, and a number among words as the word that it was."""
    number = isinstance(item, int | float) and not isinstance(item, bool)
    of = {"list[str]": str, "list[float]": float}.get(_word(kind).removesuffix(" | None"))
    return of(item) if number and of else item


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's type (the few kinds that TrainConfig has)."""
    word = _word(kind)
    if word.startswith("Literal"):
        return value in kind.__args__
    if is_list(kind):
        element = {"list[str]": str, "list[int]": int, "list[float]": float}[word.removesuffix(" | None")]
        return isinstance(value, list) and all(isinstance(x, element) and not isinstance(x, bool) for x in value)
    plain = {"str": str, "int": int, "float": float, "bool": bool}[word.removesuffix(" | None")]
    return isinstance(value, plain) and (plain is bool or not isinstance(value, bool))


def is_list(kind: Any) -> bool:
    """Whether a field holds several values."""
    return _word(kind).startswith("list")


def _word(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind).replace("typing.", "")


@cache
def help_of() -> dict[str, str]:
    """What each field means, in the order of the sections: the string under it in its file, on one line."""
    return {name: text for section in SECTIONS for name, text in _texts(section)}


def _texts(section: type) -> list[tuple[str, str]]:
    body: list[Any] = ast.parse(inspect.getsource(section)).body[0].body  # type: ignore[attr-defined]
    pairs: list[Any] = [(field, text) for field, text in itertools.pairwise(body) if isinstance(field, ast.AnnAssign)]
    return [(field.target.id, " ".join(text.value.value.split())) for field, text in pairs]
