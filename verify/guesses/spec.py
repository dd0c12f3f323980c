"""Faults of the architecture's numbers: what two specs say otherwise, and the replacement that repairs the second."""

from collections.abc import Callable, Mapping
from typing import Any

from mconv.spec import ModelSpec
from mconv.verify.specs import effective

Told = tuple[str, str, dict[str, Any]]
"""Name of the fault, what it is, and the fields for `dataclasses.replace` on b's spec."""
HEADS = ("num_attention_heads", "num_query_groups", "kv_channels")
PLAIN = ("norm_epsilon", "activation", "norm", "position", "parallel_attention", "shared_norm")
"""Fields that are faults of their own."""
RENAMED = {"norm_epsilon": "norm-epsilon", "parallel_attention": "parallel-attention", "shared_norm": "shared-norm"}


def guesses_of(a: ModelSpec, b: ModelSpec, differing: Mapping[str, Any]) -> list[Told]:
    """A fault for each thing that the specs say otherwise (`differing`: what does change the function)."""
    found = [rule(a, b) for rule in (_rope, _window, _heads) if _concerns(rule, differing)]
    for name in (name for name in PLAIN if name in differing):
        one, two = getattr(a, name), getattr(b, name)
        found.append((RENAMED.get(name, name), f"{name} is {two}, not {one}", {name: one}))
    return found


def _concerns(rule: Callable[[ModelSpec, ModelSpec], Told], differing: Mapping[str, Any]) -> bool:
    if rule is _rope:
        return any(name.startswith("rope.") for name in differing) and "position" not in differing
    return any(name in differing for name in (("sliding_window",) if rule is _window else HEADS))


def _rope(a: ModelSpec, b: ModelSpec) -> Told:
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
    told = ", ".join(f"{name} is {two[name]:g}, not {one[name]:g}" for name in fields)
    name = {"base": "rope-base", "factor": "rope-factor"}.get(fields[0] if len(fields) == 1 else "", "rope-fields")
    return name, f"rope's {told}", repair


def _window(a: ModelSpec, b: ModelSpec) -> Told:
    repair = {"sliding_window": a.sliding_window}
    if a.sliding_window is None or b.sliding_window is None:
        said = f"of {a.sliding_window} is dropped" if b.sliding_window is None else f"of {b.sliding_window} is added"
        return "sliding-window", f"the sliding window {said}", repair
    by = b.sliding_window - a.sliding_window
    told = (
        f"the sliding window is {b.sliding_window}, not {a.sliding_window}: {abs(by)} too {'many' if by > 0 else 'few'}"
    )
    return "sliding-window", told, repair


def _heads(a: ModelSpec, b: ModelSpec) -> Told:
    names = [name for name in HEADS if getattr(a, name) != getattr(b, name)]
    told = ", ".join(f"{name} is {getattr(b, name)}, not {getattr(a, name)}" for name in names)
    return "head-sizes", told, {name: getattr(a, name) for name in names}
