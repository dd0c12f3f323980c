"""The flags that load a checkpoint: a table for each program, from which the printed line, its warnings and docs follow.

A row is one decision: which args of the program say it, whether the program takes these out of a checkpoint, the flag
that mconv prints, and the warning where no flag is right.
"""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mconv.shard.layout import Layout
from mconv.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model to be loaded, and the form of its checkpoint."""

    spec: ModelSpec
    layout: Layout
    load: str
    """The checkpoint's root."""
    dtype: str = "float32"
    """The weights' dtype, by torch's name."""
    format: str = "torch_dist"
    numbered: bool = False
    """True where the tracker names an iteration, in which the program expects optimizer and random state."""


def never(case: Case) -> None:
    """Print nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warning:
    """A model for which no flag is right."""

    text: Callable[[Case], str | None]
    """A function to the problem, or to None for a model that does not have it."""
    versions: str = ""
    """Versions of the program that have the problem; empty for all."""
    docs: str
    """The models concerned, for the documentation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing that decides what a model computes, or where its shards belong."""

    decides: str
    args: tuple[str, ...] = ()
    """The program's names for it."""
    restored: Literal["no", "default", "always"] = "no"
    """The way in which a checkpoint's args restore it: not at all, unless a flag is given, or in place of a flag."""
    flag: str = ""
    value: Callable[[Case], Any] = never
    """A function to the flag's value: None prints no flag, True prints it alone."""
    printed: str = ""
    """The condition on which it is printed, for the documentation; always if empty."""
    warning: Warning | None = None


RESTORED = {"no": "no", "default": "yes, unless given", "always": "yes, over a flag"}
HEAD = ("decides", "args", "restored from a checkpoint", "printed", "no flag is right for")


def render(rows: tuple[Row, ...], case: Case, *, program: str) -> tuple[list[str], list[str]]:
    """Return the flags to paste, and a warning for each property of the model that no flag says."""
    values = [(row.flag, row.value(case)) for row in rows]
    flags = [flag if value is True else f"{flag} {_text(value)}" for flag, value in values if value is not None]
    return flags, list(_warnings(rows, case, program))


def _warnings(rows: tuple[Row, ...], case: Case, program: str) -> Iterator[str]:
    for row in rows:
        if row.warning and (text := row.warning.text(case)):
            yield f"no flag of {' '.join(filter(None, (program, row.warning.versions)))} is right for this model: {text}"


def _text(value: Any) -> str:
    return shlex.quote(value) if isinstance(value, str) else str(value)


def whole(value: float) -> float | int:
    """Return a number as programs write it: without a fraction where it has none."""
    return int(value) if value == int(value) else value


def table(rows: tuple[Row, ...]) -> list[str]:
    """Return the rows as lines of a Markdown table, for docs/flags.md."""
    body = [[row.decides, _code(row.args), RESTORED[row.restored], _printed(row), _unright(row)] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in (HEAD, ["---"] * len(HEAD), *body)]


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _printed(row: Row) -> str:
    return f"`{row.flag}`{f': {row.printed}' if row.printed else ''}" if row.flag else ""


def _unright(row: Row) -> str:
    if row.warning is None:
        return ""
    return f"{row.warning.docs} ({row.warning.versions})" if row.warning.versions else row.warning.docs
