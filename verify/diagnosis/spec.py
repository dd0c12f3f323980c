"""Faults of the architecture: differing fields of two specs, and the replacement that repairs the second."""

from collections.abc import Callable, Mapping
from typing import Any

from mconv.spec import ModelSpec
from mconv.verify.specs import effective

SpecFault = tuple[str, str, dict[str, Any]]
"""Name of the fault, its description, and the fields for `dataclasses.replace` on b's spec."""
HEADS = ("num_attention_heads", "num_query_groups", "kv_channels")
PLAIN = ("norm_epsilon", "activation", "norm", "position", "parallel_attention", "shared_norm")
"""Fields of which each is a fault of its own."""
RENAMED = {"norm_epsilon": "norm-epsilon", "parallel_attention": "parallel-attention", "shared_norm": "shared-norm"}


def guesses_of(a: ModelSpec, b: ModelSpec, differing: Mapping[str, Any]) -> list[SpecFault]:
    """Return a fault for each group of fields in `differing`, the fields that change the function."""
    found = [rule(a, b) for rule in (_rope, _window, _heads) if _concerns(rule, differing)]
    for name in (name for name in PLAIN if name in differing):
        one, two = getattr(a, name), getattr(b, name)
        found.append((RENAMED.get(name, name), f"{name} is {two}, not {one}", {name: one}))
    return found


def _concerns(rule: Callable[[ModelSpec, ModelSpec], SpecFault], differing: Mapping[str, Any]) -> bool:
    if rule is _rope:
        return any(name.startswith("rope.") for name in differing) and "position" not in differing
    return any(name in differing for name in (("sliding_window",) if rule is _window else HEADS))


def _rope(a: ModelSpec, b: ModelSpec) -> SpecFault:
    one, two, repair = effective(a.rope), effective(b.rope), {"rope": a.rope}
    fields = [name for name in one | two if one.get(name) != two.get(name) and name != "kind"]
    based = f"; its base is {two['base']:g}, not {one['base']:g}" if "base" in fields else ""
    if one["kind"] != two["kind"]:
        if two["kind"] == "default":
            return (
                "rope-scaling-dropped",
                f"the {one['kind']} rope scaling (factor {one['factor']:g}) is dropped{based}",
                repair,
            )
        if (one["kind"], two["kind"]) == ("llama3", "linear"):
            return "rope-linear-for-llama3", f"rope scaling is linear, not llama3{based}", repair
        return "rope-kind", f"rope scaling is {two['kind']}, not {one['kind']}{based}", repair
    text = ", ".join(f"{name} is {two[name]:g}, not {one[name]:g}" for name in fields)
    name = {"base": "rope-base", "factor": "rope-factor"}.get(fields[0] if len(fields) == 1 else "", "rope-fields")
    return name, f"rope's {text}", repair


def _window(a: ModelSpec, b: ModelSpec) -> SpecFault:
    repair = {"sliding_window": a.sliding_window}
    if a.sliding_window is None or b.sliding_window is None:
        change = f"of {a.sliding_window} is dropped" if b.sliding_window is None else f"of {b.sliding_window} is added"
        return "sliding-window", f"the sliding window {change}", repair
    by = b.sliding_window - a.sliding_window
    text = (
        f"the sliding window is {b.sliding_window}, not {a.sliding_window}: {abs(by)} too {'many' if by > 0 else 'few'}"
    )
    return "sliding-window", text, repair


def _heads(a: ModelSpec, b: ModelSpec) -> SpecFault:
    names = [name for name in HEADS if getattr(a, name) != getattr(b, name)]
    text = ", ".join(f"{name} is {getattr(b, name)}, not {getattr(a, name)}" for name in names)
    return "head-sizes", text, {name: getattr(a, name) for name in names}
