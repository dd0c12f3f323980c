"""A complete YAML file of a run: every field with its help and default, and the values that are given."""

import dataclasses
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import yaml

from mconv.train.config import SECTIONS, TrainConfig
from mconv.train.config.load import load
from mconv.train.config.read import help_of

WIDTH = 100
HEAD = """\
# A run: `mconv train THIS_FILE`; `mconv plan THIS_FILE` says what it needs.
# Every option is here. A line that is commented out shows the default; remove its `#` to set another value.
# A variable such as MCONV_TRAIN_LR wins over a line of this file, and a flag such as --lr over both.
"""


def text(values: Mapping[str, Any]) -> str:
    """Return the file, with these values set and all other fields commented out."""
    lines = [HEAD.rstrip("\n"), *sections(SECTIONS, TrainConfig, help_of(), values)]
    return "\n".join(lines).rstrip("\n") + "\n"


def sections(
    found: Sequence[type], of: type, helped: Mapping[str, str], values: Mapping[str, Any], *, width: int = WIDTH
) -> Iterator[str]:
    """Yield the lines of each section: its title, and its fields with their help, commented out without a value."""
    fields = {field.name: field for field in dataclasses.fields(of)}
    for section in found:
        about = (section.__doc__ or "").splitlines()[0].rstrip(".")
        title = f"# ---- {section.__name__.lower()}: {about.partition(': ')[2]} "
        yield from ("", title + "-" * max(0, width - len(title)))
        for name in section.__annotations__:
            yield from _field(fields[name], helped[name], values.get(name), width)


def _field(field: "dataclasses.Field[Any]", about: str, value: Any, width: int) -> Iterator[str]:
    """Yield the lines of one field; without a value it is commented out."""
    words = [about]
    words += (
        [f"One of {', '.join(choices)}."]
        if (choices := [one for one in get_args(field.type) if isinstance(one, str)])
        else []
    )
    words += [] if field.default is None else [f"Default: {as_yaml(field.default)}."]
    yield from textwrap.wrap(
        " ".join(words), width, initial_indent="# ", subsequent_indent="# ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    mark = "# " if value is None else ""
    yield f"{mark}{field.name}: {as_yaml(field.default if value is None else value)}".rstrip()
    yield ""


def as_yaml(value: Any) -> str:
    """Return a value as YAML on one line, which `read_yaml` reads back as the same value."""
    if value is None:
        return ""
    if isinstance(value, list):
        return f"[{', '.join(as_yaml(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{as_yaml(name)}: {as_yaml(item)}' for name, item in value.items())}}}"
    if isinstance(value, str):
        return value if _is_plain(value) else _quoted(value)
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value).lower()
    return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))


def _is_plain(word: str) -> bool:
    """Return whether YAML reads a text as itself without quotes, alone and in a list."""
    try:
        return word.isprintable() and load(f"x: {word}\ny: [{word}, {word}]") == {"x": word, "y": [word, word]}
    except yaml.YAMLError:
        return False


def _quoted(word: str) -> str:
    """Return a text in double quotes, with escapes for what is not printable."""
    quoted = json.dumps(word, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in quoted)
