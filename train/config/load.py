"""Load a run's fields from a YAML file and from environment variables."""

import dataclasses
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from mconv.errors import ConfigError, refuse
from mconv.train.config import TrainConfig
from mconv.train.config.compute import NAMES
from mconv.train.config.read import is_list, is_text, unknown

PREFIX = "MCONV_TRAIN_"
"""Prefix of the environment variable of a field; the field's name in capitals follows."""
EITHER = (NAMES, ("resume", "finetune"))
"""Fields of which one at most is true: a flag for one of them takes the place of another one's in a file."""


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all layers, later ones over earlier ones, such as flags over a file."""
    values: dict[str, Any] = {}
    for layer in layers:
        for names in EITHER:
            if any(layer.get(name) is True for name in names):
                values = {name: value for name, value in values.items() if name not in names}
        values.update(layer)
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the fields that a YAML file sets. Raises ConfigError on a key that TrainConfig does not have, by name."""
    values = mapping(path, named="CONFIG, the argument without a flag,")
    refuse([f"{path}: {problem}" for problem in unknown(values)], doing=f"reading {path}", kind=ConfigError)
    return values


def mapping(path: Path, *, named: str) -> dict[str, Any]:
    """Return what a YAML file of `field: value` lines holds. `named`: what the command line calls the file."""
    try:
        with path.open("rb") as file:
            values = load(file) or {}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; {named} is a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(_not_yaml(path, error)) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `field: value` lines, found a {type(values).__name__}")
    return values


def load(source: str | IO[bytes]) -> Any:
    """Return YAML's value, numbers as people write them."""
    return yaml.load(source, _Loader)  # a SafeLoader


def _as_variables(problem: str) -> str:
    """Return a problem of an unknown field, the field that is meant named as a variable."""
    return re.sub(r"(?<=did you mean ')\w+", lambda found: f"{PREFIX}{found[0].upper()}", problem)


def _not_yaml(path: Path, error: yaml.YAMLError) -> str:
    """Return where a file is no YAML, and why."""
    begun = getattr(error, "context_mark", None) or getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "context", None)
    if begun is None:
        return f"{path}: {error}"
    return f"{path}, line {begun.line + 1}: {problem}" + "; a line of it is `field: value`" * ("expected" in str(problem))


def read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields that variables set, each written as in YAML, lists with spaces; an empty one sets nothing.

    Raises ConfigError on a variable that no field has, by name.
    """
    told = {name.removeprefix(PREFIX).lower(): text for name, text in environment.items() if name.startswith(PREFIX)}
    bad = [
        f"environment: {PREFIX}{name.upper()}: {_as_variables(problem)}" for name in told for problem in unknown([name])
    ]
    refuse(bad, doing="reading the environment", kind=ConfigError)
    kinds = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    return {
        name: value_of(text, kinds[name], named=f"environment: {PREFIX}{name.upper()}")
        for name, text in told.items()
        if text
    }


def value_of(text: str, kind: Any, *, named: str) -> Any:
    """Return a text as the YAML value of a field's type, a list's words with spaces between them."""
    if not is_list(kind):
        return text if is_text(kind) else _scalar(text)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{named} is {text!r}: {error}") from error
    return words if "str" in str(kind) else [_scalar(word) for word in words]


def _scalar(text: str) -> Any:
    try:
        return load(text)
    except yaml.YAMLError:
        return text


class _Loader(yaml.SafeLoader):
    """YAML as people read it: a key once, 010 and 1:30 no numbers, 3e-4 one, a date a word."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as yaml has it)
        first: [(tag, form) for tag, form in forms if tag.rpartition(":")[2] not in ("int", "float", "timestamp")]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        before: list[Any] = []
        for key, _ in node.value:
            if key.value in before:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is set twice", key.start_mark)
            before.append(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?((0|[1-9][0-9_]*)(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?$|[-+]?\.inf$|\.nan$"),
    list("-+0123456789."),
)
