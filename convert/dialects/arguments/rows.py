"""Which args a program's checkpoints may have, and what each decides: every one is claimed, or it stops.

An arg that no row claims passes if its value says nothing, or if the user lets it pass by name.
"""

import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from mconv.convert.formats.dtype import DType
from mconv.convert.formats.unpickle import StandIn
from mconv.errors import ConfigError, refuse

Values = Mapping[Any, Any]
"""Args by name. A file can hold one whose name is no text; no row claims it."""
NONE_TOLD: Mapping[str, Any] = {}
OFF = (False, None)
"""Values of a switch that is off."""
SECRET = re.compile(r"api_?key|secret|passw|credential|access_?key|auth_?token", re.IGNORECASE)
"""Names of args whose value must not be printed or kept."""
FLOAT_MAX = int(sys.float_info.max)
LONGEST, MOST = 80, 12
"""Of a value that is shown: characters, and elements of each container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Args that decide something only where one of the switches `unless` is on, which rows of their own rule out."""

    unless: tuple[str, ...]
    names: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """Every arg that one program's checkpoints are known to have."""

    program: str
    fields: frozenset[str]
    """Args that are fields of the spec or of the layout, or that tell how to read those."""
    kinds: Mapping[str, tuple[type, ...]] = field(default_factory=dict)
    """Types of the fields that are read without a look at their type: None is right everywhere."""
    neutral: Mapping[str, tuple[Any, ...]]
    """Args that change the function, and the values with which they do not."""
    conditions: tuple[Condition, ...]
    meanings: Mapping[str, str] = field(default_factory=dict)
    """What a neutral arg with another value is the mark of: said beside it."""
    inert: frozenset[str]
    """Args that never change the function: training, data, logging, I/O, parallelism, precision."""

    def names(self) -> frozenset[str]:
        """Return every name that a row claims."""
        return self.fields.union(self.neutral, self.inert, *(row.names for row in self.conditions))

    def wrong(self, values: Values) -> list[str]:
        """Return what is claimed and has a value that mconv does not compute, as `name is value`."""
        found = [n for n, ok in self.neutral.items() if n in values and not one_of(values[n], ok)]
        found += [n for n, kinds in self.kinds.items() if not _is_one(values.get(n), kinds)]
        said = [f"{n} is {shown(n, values[n])}{f' ({self.meanings[n]})' if n in self.meanings else ''}" for n in found]
        return said + list(self._unruled(values))

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
    values: Values, table: Arguments, *, ignore: frozenset[str] = frozenset(), told: Mapping[str, Any] = NONE_TOLD
) -> dict[str, Any]:
    """Return the args that no row claims and that pass because `ignore` or `told` names them, with plain values.

    `ignore`: names that the user gives now; `told`: what a manifest records, which lets pass that value alone. Raises
    ConfigError, by name, for an arg with which the model is another one, for one that nobody claims, and for one in
    `ignore` that a row claims.
    """
    if wrong := table.wrong(values):
        also = unheeded(ignore & table.names() & values.keys())
        raise ConfigError(f"its args describe a model that mconv does not support: {'; '.join(wrong[:20])}{also}")
    refuse(
        [f"--ignore-arg {n}, but mconv reads this arg (it is in the {table.program} table); remove the flag"
         for n in sorted(ignore & table.names() & values.keys())], doing="names to ignore", kind=ConfigError,
    )  # fmt: skip
    left = table.unclaimed(values)
    passed = {
        name: plain(name, value) for name, value in left.items()
        if spelled(name) in ignore or (name in told and told[name] == plain(name, value))
    }  # fmt: skip
    unknown = {name: value for name, value in left.items() if name not in passed}
    refuse(
        [f"{label(name)} is {shown(name, value)}: no row of the {table.program} table claims it, so it may change what "
         f"the model computes. If it does not: --ignore-arg {label(name)}" for name, value in unknown.items()],
        doing="args that mconv does not know", kind=ConfigError,
    )  # fmt: skip
    return passed


def unheeded(names: AbstractSet[str]) -> str:
    """Return what to add to a refusal where the user asked to ignore one of the names that rows claim."""
    return f"; a row claims {min(names)}, so --ignore-arg does not let it pass" if names else ""


# ---- values ----------------------------------------------------------------------------------------------------------
def says_nothing(value: Any) -> bool:
    """Tell whether a value is what an arg has that nobody set: None, False, 0 or empty."""
    if isinstance(value, (str, bytes, list, tuple, dict, set, frozenset)):
        return len(value) == 0
    return value is None or (isinstance(value, (bool, int, float)) and value == 0)


def _is_one(value: Any, kinds: tuple[type, ...]) -> bool:
    """Tell whether a value is None or of one of the types; a switch may also be 0 or 1."""
    if kinds == (bool,):
        return one_of(value, (True, False, None))
    return value is None or (isinstance(value, kinds) and not isinstance(value, bool) and _fits(value))


def _fits(value: Any) -> bool:
    """Tell whether a number is one that fp64 has; anything else fits."""
    return not isinstance(value, int) or abs(value) <= FLOAT_MAX


def one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Tell whether a value is among those allowed. True is not 1: a switch is no number."""
    return any(value == ok and not (value is True and type(ok) is not bool) for ok in allowed)


def spelled(name: object) -> object:
    """Return the name of an arg as `--ignore-arg` takes it: a file may have hyphens in it."""
    return name.replace("-", "_") if isinstance(name, str) else name


def label(name: object) -> str:
    """Return the name of an arg as it can be printed."""
    return name if isinstance(name, str) and name.isidentifier() and name.isascii() else _text(name)


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
