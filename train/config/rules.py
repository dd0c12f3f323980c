"""What a section says about its fields: one line per broken rule, naming the field, its value and the rule."""

import math
from collections.abc import Iterator
from typing import Any


def each(config: Any, names: str, rule: str, holds: Any) -> Iterator[str]:
    """A problem for each of the `names` (spaces between) that is set and for whose value `holds` is not true."""
    for name in names.split():
        value = getattr(config, name)
        if value is not None and not holds(value):
            yield f"{name} is {value!r}; it must be {rule}"


def at_least_1(config: Any, names: str) -> Iterator[str]:
    """Problems of counts that must be there."""
    return each(config, names, "at least 1", lambda value: value >= 1)


def not_negative(config: Any, names: str) -> Iterator[str]:
    """Problems of numbers that may be 0, and are finite."""
    return each(config, names, "0 or more", lambda value: 0 <= value < math.inf)


def positive(config: Any, names: str) -> Iterator[str]:
    """Problems of numbers that are more than 0, and finite."""
    return each(config, names, "more than 0", lambda value: 0 < value < math.inf)


def below_1(config: Any, names: str) -> Iterator[str]:
    """Problems of shares that must leave something."""
    return each(config, names, "at least 0 and less than 1", lambda value: 0 <= value < 1)
