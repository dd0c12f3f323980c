"""Write values so that the program that reads them takes them literally: a filter for each language."""

import re
import shlex
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from mconv.errors import ConfigError


class Quoted(str):
    """Text that is quoted already, or code."""

    __slots__ = ()


def shell(value: Any) -> Quoted:
    """Return a value as bash reads it back, as one word; a list as one word for each item."""
    if isinstance(value, Quoted):
        return value
    if isinstance(value, list | tuple):
        return Quoted(" ".join(shell(item) for item in value))
    return Quoted(shlex.quote(str(value)))


def sbatch(option: str, value: Any) -> str:
    """Return a line `#SBATCH --option=value`, a value of True for one without.

    sbatch splits the line at spaces and ends it at `#`, but for what a backslash precedes. Raises ConfigError on a line
    break, which would begin a line that is none of ours.
    """
    if value is True:
        return f"#SBATCH {option}"
    if re.search(r"[\n\r\x00]", str(value)):
        raise ConfigError(f"{option} is {value!r}: a line of sbatch cannot hold a line break")
    escaped = re.sub(r"([\\'\"#\s])", r"\\\1", str(value))
    return f"#SBATCH {option}={escaped}"


def folder_pattern(folder: str) -> str:
    """Return a folder as sbatch's patterns of file names have it, where % begins a replacement. Raises ConfigError."""
    if "\\" in folder:
        raise ConfigError(f"{folder}: sbatch replaces no %j in a path with a backslash; choose another folder for output")
    return folder.replace("%", "%%")


def render(name: str, values: Mapping[str, Any]) -> str:
    """Return a template's text, every value in it quoted for the shell. Raises ConfigError on one that is not set."""
    try:
        return _environment().get_template(f"{name}.jinja").render(values)
    except jinja2.UndefinedError as error:
        raise ConfigError(f"{name} cannot be rendered: {error.message}") from error


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined, finalize=shell,
        keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True, autoescape=False,
    )  # fmt: skip


def lines(commands: Iterable[Iterable[Any]]) -> Quoted:
    """Return commands as lines of bash."""
    return Quoted("\n".join(shell([*command]) for command in commands))


def wrapped(words: Iterable[Any], *, indent: int = 2, width: int = 118) -> Quoted:
    """Return the words of one command over as many lines as it takes, with backslashes between."""
    found: list[str] = []
    for word in map(shell, words):
        if found and len(found[-1]) + len(word) + 3 <= width:
            found[-1] += f" {word}"
        else:
            found.append(word)
    return Quoted(f" \\\n{' ' * indent}".join(found))
