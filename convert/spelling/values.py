"""Values of a file that somebody else wrote: what they say, and how to print and keep them safely."""

import itertools
import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from mconv.convert.formats.dtype import DType
from mconv.convert.formats.unpickle import StandIn

SECRET = re.compile(r"api_?key|secret|passw|credential|access_?key|auth_?token", re.IGNORECASE)
"""Names of keys whose value must not be printed or kept."""
LONGEST, MOST = 80, 12
"""Limits of a value that is shown: characters, and elements of each container."""


def says_nothing(value: Any) -> bool:
    """Return whether a value is what an arg has that nobody set: None, False, 0 or empty."""
    if isinstance(value, (str, bytes, list, tuple, dict, set, frozenset)):
        return len(value) == 0
    return value is None or (isinstance(value, (bool, int, float)) and value == 0)


def one_of(value: Any, allowed: Iterable[Any]) -> bool:
    """Return whether a value is among those allowed. True is not 1: a switch is no number."""
    return any(value == ok and not (value is True and type(ok) is not bool) for ok in allowed)


def equal(a: Any, b: Any) -> bool:
    """Return whether two JSON values are equal; true is not one, and false not zero."""
    return (type(a) is bool) == (type(b) is bool) and a == b


def spelled(name: object) -> object:
    """Return the name of an arg as `--ignore-arg` takes it: a file may have hyphens in it."""
    return name.replace("-", "_") if isinstance(name, str) else name


def label(name: object) -> str:
    """Return the name of a key as it can be printed: on one line, and not too long."""
    plain = isinstance(name, str) and name.isprintable() and len(name) <= LONGEST
    return name if plain and isinstance(name, str) else _text(name)[:LONGEST]


def shown(name: object, value: Any) -> str:
    """Return a value as it can be printed: short, on one line, without secrets."""
    if isinstance(name, str) and SECRET.search(name):
        return "(hidden)"
    text = _text(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def plain(name: object, value: Any) -> Any:
    """Return a value as the manifest keeps it: a plain one as it is, any other as it is shown."""
    whole = value is None or isinstance(value, (bool, str)) or (isinstance(value, (int, float)) and abs(value) < 1e300)
    return value if whole and shown(name, value) == repr(value) else shown(name, value)


def _text(value: Any, depth: int = 3) -> str:
    """Return a value in words, with as much of it as is worth reading: the file may nest or repeat it without end."""
    if isinstance(value, (str, bytes)):
        return repr(value[:LONGEST])
    if isinstance(value, (list, tuple, dict, set, frozenset, StandIn)) and depth == 0:
        return "..."
    if isinstance(value, StandIn):  # one that was made without a call has no args
        return f"{type(value).__name__}({', '.join(_text(x, depth - 1) for x in getattr(value, 'args', ())[:MOST])})"
    if isinstance(value, dict):
        pairs = itertools.islice(value.items(), MOST)
        return f"{{{', '.join(f'{_text(k, depth - 1)}: {_text(v, depth - 1)}' for k, v in pairs)}}}"
    if isinstance(value, (list, tuple, set, frozenset)):
        inside = ", ".join(_text(x, depth - 1) for x in itertools.islice(value, MOST))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    small = isinstance(value, (bool, float, DType, PurePath)) or (isinstance(value, int) and abs(value) < 1 << 64)
    return repr(value) if value is None or small else f"a {type(value).__name__}"
