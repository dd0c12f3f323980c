"""Remove secrets from whatever a run prints, writes or sends."""

import dataclasses
import re
from typing import Any

from mconv.train.config import PREFIX, TrainConfig

SECRET = re.compile(
    r"(^|[_-])(\w*KEY|TOKENS?|SECRET\w*|PASS\w*|CREDENTIALS?|AUTH\w*|COOKIE\w*|PRIVATE\w*|SIGNATURE)($|[_-])",
    re.IGNORECASE,
)
IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
HIDDEN = "[redacted]"
FIELDS = frozenset(field.name for field in dataclasses.fields(TrainConfig))


def secrets(environment: Any) -> set[str]:
    """Return the values of variables whose names say that they are secret."""
    return {value for name, value in environment.items() if is_secret(name.upper()) and len(value) >= 6}


def hidden(value: Any, known: set[str], *, name: str = "") -> Any:
    """Return `value` with secrets replaced: under secret names, the `known` ones anywhere, and passwords in URLs."""
    if isinstance(value, dict):
        return {key: hidden(inner, known, name=str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        flags = ["", *map(str, value)]
        return [hidden(inner, known, name="" if "=" in flag else flag) for flag, inner in zip(flags, value, strict=False)]
    if not isinstance(value, str):
        return value
    if is_secret(name) and not value.startswith("-"):
        return HIDDEN
    for one in sorted(known, key=len, reverse=True):  # one may lie in another
        value = value.replace(one, HIDDEN)
    flag, given, _ = value.partition("=")
    if given and is_secret(flag):
        return f"{flag}={HIDDEN}"
    return IN_ADDRESS.sub(HIDDEN, value)


def is_secret(name: str) -> bool:
    """Return whether a variable (in capitals) or a flag has a secret's name, and is no field of a run (eod_token)."""
    field = name.lstrip("-").replace("-", "_").lower().removeprefix(PREFIX.lower())
    return field not in FIELDS and (name.isupper() or name.startswith("--")) and bool(SECRET.search(name))
