"""Tables of the args that a program's checkpoints may have, and what each decides: every one is claimed, or it stops.

An arg that no row claims passes if its value says nothing, or if the user lets it pass by name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mconv.convert.spelling.claim import ARG, accept, refuse_claimed, unheeded
from mconv.convert.spelling.keys import Left
from mconv.convert.spelling.values import one_of, plain, says_nothing, shown, spelled
from mconv.errors import ConfigError

Values = Mapping[Any, Any]
"""Args by name. A file can hold one whose name is no text; no row claims it."""
NONE_RECORDED: Mapping[str, Any] = {}
OFF = (False, None)
"""Values of a switch that is off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Args that decide something only where one of the switches `unless` is on, which rows of their own rule out."""

    unless: tuple[str, ...]
    names: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """Every arg that one program's checkpoints are known to have."""

    program: str
    what: str = "args"
    """The part of the program's files that they are."""
    fields: frozenset[str]
    """Args that are fields of the spec or of the layout, or that tell how to read those."""
    neutral: Mapping[str, tuple[Any, ...]]
    """Args that change the function, and the values with which they do not."""
    conditions: tuple[Condition, ...]
    meanings: Mapping[str, str] = field(default_factory=dict)
    """Explanations, shown in messages, of neutral args that have another value."""
    inert: frozenset[str]
    """Args that never change the function: training, data, logging, I/O, parallelism, precision."""

    def names(self) -> frozenset[str]:
        """Return every name that a row claims."""
        return self.fields.union(self.neutral, self.inert, *(row.names for row in self.conditions))

    def wrong(self, values: Values) -> list[str]:
        """Return what is claimed and has a value that mconv does not compute, as `name is value`."""
        found = [n for n, ok in self.neutral.items() if n in values and not one_of(values[n], ok)]
        problems = [
            f"{n} is {shown(n, values[n])}{f' ({self.meanings[n]})' if n in self.meanings else ''}" for n in found
        ]
        return problems + list(self._unruled(values))

    def _unruled(self, values: Values) -> Iterator[str]:
        """Yield the args of a condition that no switch rules out: those that have it have the switch, too."""
        for row in self.conditions:
            if not any(name in values for name in row.unless):
                for name in sorted(row.names & values.keys()):
                    if not says_nothing(values[name]):
                        yield f"{name} is {shown(name, values[name])}, and no {row.unless[0]} says that it is not used"

    def unclaimed(self, values: Values) -> dict[Any, Any]:
        """Return the args that no row claims and whose value says something."""
        claimed = self.names()
        return {name: value for name, value in values.items() if name not in claimed and not says_nothing(value)}


def check(
    values: Values, table: Arguments, *, ignore: frozenset[str] = frozenset(), recorded: Mapping[str, Any] = NONE_RECORDED
) -> dict[str, Any]:
    """Return the args that no row claims and that pass because `ignore` or `recorded` names them, with plain values.

    `ignore`: names that the user gives now; `recorded`: what a manifest records, which lets pass that value alone. Raises
    ConfigError, by name, for an arg with which the model is another one, for one that nobody claims, and for one in
    `ignore` that a row claims.
    """
    claimed = ignore & table.names() & values.keys()
    if wrong := table.wrong(values):
        also = unheeded(ARG, claimed)
        raise ConfigError(f"its args describe a model that mconv does not support: {'; '.join(wrong[:20])}{also}")
    refuse_claimed(ARG, claimed)
    left = Left(table.unclaimed(values), prefix="")
    kept = {name: plain(name, value) for name, value in left.items()}
    named = {n for n, value in kept.items() if spelled(n) in ignore or (n in recorded and recorded[n] == value)}
    return {n: kept[n] for n in accept(left, of=f"{table.program}'s {table.what}", flag=ARG, ignore=named)}
