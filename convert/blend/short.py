"""Recipes without a file: models, a method, and what hold for all or each of them; the iterations of a run."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mconv.convert.blend.methods import METHODS, REQUIRED, Method
from mconv.errors import ConfigError

SERIES: Mapping[str, Callable[[int], list[float]]] = {
    "uniform": lambda count: [1.0] * count,
    "linear": lambda count: [float(at + 1) for at in range(count)],
    "exponential": lambda count: [2.0**at for at in range(count)],
}
"""Names of weights: all the same; 1, 2, 3, ...; or each twice the one before. The last model weighs most."""


def document(
    models: Sequence[str], method: str, *, base: str | None = None, weights: str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the recipe of a blend of whole models. Raises ConfigError on what its method does not have."""
    if method not in METHODS:
        raise ConfigError(f"--method {method!r} is not one of {', '.join(METHODS)}")
    rule = METHODS[method]
    if base is None and rule.base == "required":
        if rule.models != (1, 1):
            raise ConfigError(f"--method {method} adds up differences from a base: name it with --base")
        base = models[0]
    if missing := [one.name for one in rule.shared if one.default is REQUIRED and one.name not in (parameters or {})]:
        raise ConfigError(f"--method {method} needs --{missing[0]}")
    each = [name for name in models if rule.base == "unused" or name != base]
    weighed = dict(zip(each, _weights(rule, weights, len(each)), strict=True)) if _has_weights(rule, weights) else {}
    listed = [{"model": name, **_weight(weighed.get(name))} for name in models]
    found: dict[str, Any] = {"merge_method": method, "models": listed}
    if base is not None:
        found["base_model"] = base
    return found | ({"parameters": dict(parameters)} if parameters else {})


def _weight(weight: float | None) -> dict[str, Any]:
    return {} if weight is None else {"parameters": {"weight": weight}}


def _has_weights(rule: Method, weights: str | None) -> bool:
    has = any(parameter.name == "weight" for parameter in rule.each)
    if weights is not None and not has:
        raise ConfigError(f"--weights: {rule.name} has no weights; leave them out")
    return has


def _weights(rule: Method, weights: str | None, count: int) -> list[float]:
    """Return a weight for each model: as they are listed, or by the name of a series."""
    if weights is None and rule.deltas:
        raise ConfigError(
            f"--method {rule.name} needs --weights: {count} with commas between, or one of {', '.join(SERIES)}"
        )
    if weights is None or weights in SERIES:
        return SERIES[weights or "uniform"](count)
    try:
        found = [float(one) for one in weights.split(",")]
    except ValueError:
        raise ConfigError(
            f"--weights {weights!r}: numbers with commas between (0.7,0.3), or one of {', '.join(SERIES)} were expected"
        ) from None
    if len(found) != count:
        raise ConfigError(
            f"--weights {weights} are {len(found)} for {count} models" + " besides the base" * bool(rule.deltas)
        )
    return found


def parameters(given: Sequence[str]) -> dict[str, Any]:
    """Return the parameters that `NAME=VALUE` give, whose values the recipe reads. Raises ConfigError on another form."""
    pairs = [re.fullmatch(r"(\w+)=(.+)", text) for text in given]
    if None in pairs:
        raise ConfigError(f"--set {given[pairs.index(None)]!r}: NAME=VALUE was expected, as in normalize=false")
    return {pair[1]: pair[2] for pair in pairs if pair}
