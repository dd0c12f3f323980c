"""Rules for fields: each broken one gives a line with the field, its value and the rule."""

import math
from collections.abc import Iterator
from typing import Any


def each(config: Any, names: str, rule: str, holds: Any) -> Iterator[str]:
    """Yield a problem for each of the `names` (spaces between) that is set and whose value does not satisfy `holds`."""
    for name in names.split():
        value = getattr(config, name)
        if value is not None and not holds(value):
            yield f"{name} is {value!r}; it must be {rule}"


def at_least_1(config: Any, names: str) -> Iterator[str]:
    """Return the problems of counts that are less than 1."""
    return each(config, names, "at least 1", lambda value: value >= 1)


def not_negative(config: Any, names: str) -> Iterator[str]:
    """Return the problems of numbers that are negative or not finite."""
    return each(config, names, "0 or more", lambda value: 0 <= value < math.inf)


def positive(config: Any, names: str) -> Iterator[str]:
    """Return the problems of numbers that are not positive or not finite."""
    return each(config, names, "more than 0", lambda value: 0 < value < math.inf)


def below_1(config: Any, names: str) -> Iterator[str]:
    """Return the problems of fractions outside of [0, 1)."""
    return each(config, names, "at least 0 and less than 1", lambda value: 0 <= value < 1)
