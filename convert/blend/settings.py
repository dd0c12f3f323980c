"""The parameters of a recipe: read by the method's table, and evaluated for a tensor by mergekit's rules.

A value is one for all tensors, or a list that runs over the layers, or several of these with filters on tensor names.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mconv.convert.blend.document import Keys, claim, shown, text
from mconv.convert.blend.methods import REQUIRED, Method, Parameter
from mconv.errors import ConfigError

BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
NOUNS = {float: "a number", int: "a whole number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Choice:
    """A value of a parameter, and the tensors that it holds for."""

    values: tuple[Any, ...]
    """One value, or several that run over the layers of a slice; none says nothing."""
    filter: str | None = None
    """What the tensor's name must contain; None or "*": all tensors."""

    def at(self, t: float) -> Any:
        """Return the value at a place between the first layer (0) and the last (1); None if there is no value."""
        if not self.values:
            return None
        place = t * (len(self.values) - 1)
        low = int(place)
        if isinstance(self.values[0], bool):
            return self.values[low]
        share, high = place - low, min(len(self.values) - 1, low + 1)
        return (1 - share) * self.values[low] + share * self.values[high]

    def meets(self, tensor: str) -> bool:
        """Return whether it holds for a tensor."""
        return self.filter in (None, "*") or str(self.filter) in tensor


Settings = Mapping[str, tuple[Choice, ...]]
"""Parameters by name; of several choices the first that holds for a tensor counts."""


def read(value: Any, where: str, method: Method, *, one_model: bool = False) -> Settings:
    """Return the parameters written in one place of a recipe. `one_model`: it is a model's own place."""
    if value is None:
        return {}
    known = {parameter.name: parameter for parameter in method.parameters}
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {shown(value)}, not names with values")
    for name in value:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"{where}: {method.name} has no parameter {shown(name)}; {has}")
        if one_model and known[name] in method.shared:
            raise ConfigError(
                f"{where}: {name} of {method.name} is one for all models; move it to the slice or the recipe"
            )
    return {name: _choices(known[name], written, f"{where}.{name}") for name, written in value.items()}


def _choices(parameter: Parameter, value: Any, where: str) -> tuple[Choice, ...]:
    several = isinstance(value, list) and any(isinstance(one, dict) for one in value)
    conditions = value if several else [value]
    return tuple(_choice(parameter, one, where) for one in conditions)


def _choice(parameter: Parameter, value: Any, where: str) -> Choice:
    if not isinstance(value, dict):
        values = value if isinstance(value, list) else [value]
        return Choice(tuple(_scalar(parameter, one, where) for one in values))
    found = claim(value, where, CONDITION, required=("value",))
    return Choice(_choice(parameter, found["value"], where).values, found.get("filter"))


def _unconditional(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        raise ConfigError(f"{where} is {shown(value)}, a condition in a condition")
    return value


CONDITION: Keys = {"filter": text, "value": _unconditional}


def _scalar(parameter: Parameter, value: Any, where: str) -> Any:
    """Return a value of a parameter in its type, within its bounds; YAML takes `1e-5` for text."""
    found = _typed(parameter.kind, value)
    if found is None:
        raise ConfigError(f"{where} is {shown(value)}, not {NOUNS[parameter.kind]}")
    least, most = parameter.least, parameter.most
    if (least is not None and found < least) or (most is not None and found > most):
        bounds = f"between {least} and {most}" if most is not None else f"{least} or more"
        raise ConfigError(f"{where} is {value}; it must be {bounds}")
    return found


def _typed(kind: type, value: Any) -> Any:
    """Return a value in a type, None if it is of another one."""
    if kind is bool:
        return BOOLEANS.get(str(value).lower())
    if not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    if kind is int:
        return int(number) if number.is_integer() else None
    return number if math.isfinite(number) else None


def evaluate(parameter: Parameter, places: Iterable[Settings], tensor: str, t: float, whose: str) -> Any:
    """Return a parameter's value for a tensor: of the first place that says one, else its default.

    Raises ConfigError if there is none. `whose`: the model that it is a parameter of, for the message.
    """
    for settings in places:
        choice = next((one for one in settings.get(parameter.name, ()) if one.meets(tensor)), None)
        if choice is not None and (value := choice.at(t)) is not None:
            return _whole(parameter, value, tensor)
    if parameter.default is REQUIRED:
        raise ConfigError(
            f"{tensor}: no {parameter.name}{whose}; give it under parameters, without a filter for all tensors"
        )
    return parameter.default


def _whole(parameter: Parameter, value: Any, tensor: str) -> Any:
    if parameter.kind is not int:
        return value
    if value != int(value):
        raise ConfigError(f"{tensor}: {parameter.name} would be {value} here, which is not a whole number")
    return int(value)
