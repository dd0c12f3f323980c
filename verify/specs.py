"""What two checkpoints say beyond their tensors: which of it makes another function, and which does not."""

import math
from typing import Any

from mconv.spec import ModelSpec, Rope

TOLD_BY_TENSORS = ("family", "qkv_bias", "proj_bias", "mlp_bias")
"""Fields of the spec that decide nothing beyond which tensors there are, and the name of a family."""
LIMITS = ("max_position_embeddings",)
"""Fields that say how far a model may be used; what it computes there does not depend on them."""
ROPE_FIELDS = {
    "default": ("base",),
    "linear": ("base", "factor"),
    "llama3": ("base", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""What each kind of rope computes with; the rest of `Rope` is then left at any value."""
IN_FP32 = 1e-7
"""Relative: a number that was kept in fp32 on its way is the same number."""

Two = tuple[Any, Any]


def spec_differences(a: ModelSpec, b: ModelSpec) -> dict[str, Two]:
    """The fields that two specs say otherwise and that change the function, rope's among them."""
    return {name: two for name, two in _unlike(a, b).items() if name not in LIMITS}


def spec_notes(a: ModelSpec, b: ModelSpec) -> dict[str, Two]:
    """The fields that two specs say otherwise and that change no function."""
    return {name: two for name, two in _unlike(a, b).items() if name in LIMITS}


def effective(rope: Rope) -> dict[str, Any]:
    """What of a rope is computed with: a factor of 1 stretches nothing, whatever the kind."""
    kind = "default" if rope.factor == 1 else rope.kind
    return {"kind": kind, **{name: getattr(rope, name) for name in ROPE_FIELDS[kind]}}


def _unlike(a: ModelSpec, b: ModelSpec) -> dict[str, Two]:
    one, two = _flat(a), _flat(b)
    return {n: (one.get(n), two.get(n)) for n in one | two if not _same(one.get(n), two.get(n))}


def _flat(spec: ModelSpec) -> dict[str, Any]:
    values = {name: value for name, value in spec.to_dict().items() if name not in (*TOLD_BY_TENSORS, "rope")}
    rope = effective(spec.rope) if spec.position == "rope" else {}
    return values | {f"rope.{name}": value for name, value in rope.items()}


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, float) and isinstance(y, float):
        return math.isclose(x, y, rel_tol=IN_FP32, abs_tol=0.0)
    return bool(x == y)
