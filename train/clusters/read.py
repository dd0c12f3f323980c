"""Read a cluster's YAML file, and fields that a command line sets one by one."""

import dataclasses
import difflib
import textwrap
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mconv.errors import ConfigError, refuse
from mconv.train.clusters.cluster import Cluster
from mconv.train.clusters.fields import SECTIONS
from mconv.train.config import load, read, template

KEY = "cluster"
"""The only key at the top of a cluster's file."""
HEAD = """\
# A cluster, shared by the runs on it: `mconv launch slurm RUN.yaml --cluster THIS_FILE` renders its job.
# Every field is here. A line that is commented out shows the default; remove its `#` to set another value.
# `--set cluster.partition=debug` wins over a line of this file for one job. Values are literal: nothing is expanded.
cluster:
"""
KINDS = {field.name: field.type for field in dataclasses.fields(Cluster)}


@cache
def help_of() -> dict[str, str]:
    """Return the help of each field, in the order of the sections."""
    return read.texts(SECTIONS)


def make(values: Mapping[str, Any]) -> Cluster:
    """Return a cluster of plain values. Raises ConfigError on unknown fields, wrong types and broken rules, by name."""
    return Cluster(**checked(values))


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as fields hold them. Raises ConfigError on unknown fields and wrong types, by name."""
    refuse(_unknown(values), doing="reading the cluster", kind=ConfigError)
    return read.typed(values, Cluster, help_of(), doing="reading the cluster")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the fields that a cluster's file sets. Raises ConfigError on what is not its own, by name."""
    found = load.mapping(path, named="--cluster")
    if [*found] != [KEY] or not isinstance(found[KEY], dict | None):
        raise ConfigError(
            f"{path}: a cluster's file has one key, `cluster:`, and the fields below it; "
            "`mconv launch write-cluster FILE` writes one to fill in"
        )
    values: dict[str, Any] = found[KEY] or {}
    refuse([f"{path}: {problem}" for problem in _unknown(values)], doing=f"reading {path}", kind=ConfigError)
    return values


def assigned(words: Iterable[str], *, kinds: Mapping[str, Any] = KINDS) -> dict[str, Any]:
    """Return the fields that NAME=VALUE words set; NAME.KEY=VALUE sets one entry of a field that maps names to texts."""
    values: dict[str, Any] = {}
    for word in words:
        given, sign, text = word.partition("=")
        name, dot, key = given.partition(".")
        if not sign or not name:
            raise ConfigError(f"--set {word}: it is NAME=VALUE, such as cluster.nodes=2")
        if dot and name in kinds and read.is_map(kinds[name]):
            values.setdefault(name, {})[key] = text
        elif name in kinds and not dot:
            values[name] = load.value_of(text, kinds[name], named=f"--set {given}")
        else:
            values[given] = text  # named as unknown where the fields are checked
    return values


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return values over others, entries of a mapping over its other entries."""
    both = {
        name: {**below[name], **value}
        for name, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(name), dict)
    }
    return {**below, **above, **both}


def text(values: Mapping[str, Any]) -> str:
    """Return a complete, commented file with these values set."""
    lines = template.sections(SECTIONS, Cluster, help_of(), values, width=template.WIDTH - 2)
    return HEAD + textwrap.indent("\n".join(lines).strip("\n"), "  ") + "\n"


def _unknown(names: Iterable[Any]) -> list[str]:
    """Return a problem for each name that no field has, with a suggestion."""
    wrong = [str(name) for name in names if name not in KINDS]
    close = {name: difflib.get_close_matches(name.replace("-", "_"), KINDS, n=1) for name in wrong}
    return [
        f"cluster has no field {name!r}" + (f"; did you mean {close[name][0]!r}?" if close[name] else "")
        for name in wrong
    ]
