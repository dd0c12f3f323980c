"""Comparison of two architectures: which fields change the function, and which do not."""

import math
from collections.abc import Mapping
from typing import Any

from mconv.spec import ModelSpec, Rope

TOLD_BY_TENSORS = ("family", "qkv_bias", "proj_bias", "mlp_bias")
"""Fields of the spec that only decide which tensors there are, and the name of the family."""
LIMITS = ("max_position_embeddings",)
"""Fields that limit how far a model may be used and do not change what it computes."""
ROPE_FIELDS = {
    "default": ("base",),
    "linear": ("base", "factor"),
    "llama3": ("base", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Fields that each kind of rope computes with; the other fields of `Rope` may hold any value."""
APART = ("hidden_size", "position", "norm", "parallel_attention", "shared_norm")
"""Fields that must agree before the hidden states of one model mean anything to the other."""
WORDS = {
    "num_layers": "layers", "hidden_size": "hidden size", "ffn_hidden_size": "FFN size",
    "num_attention_heads": "attention heads", "num_query_groups": "query groups", "kv_channels": "head dimension",
    "vocab_size": "vocabulary", "max_position_embeddings": "positions", "tied_embeddings": "tied embeddings",
}  # fmt: skip
"""Names of fields for people, where these are not the field's own words."""
IN_FP32 = 1e-7
"""Relative difference within which two numbers are the same, kept in fp32 on the way."""

Two = tuple[Any, Any]


def spec_differences(a: ModelSpec, b: ModelSpec) -> dict[str, Two]:
    """Return the differing fields of two specs that change the function, rope's included."""
    return {name: two for name, two in _unlike(a, b).items() if name not in LIMITS}


def spec_notes(a: ModelSpec, b: ModelSpec) -> dict[str, Two]:
    """Return the differing fields of two specs that do not change the function."""
    return {name: two for name, two in _unlike(a, b).items() if name in LIMITS}


def incomparable(a: ModelSpec, b: ModelSpec) -> bool:
    """Return whether two models are so different that their layers cannot take each other's inputs."""
    gated = [spec.activation == "swiglu" for spec in (a, b)]
    return gated[0] != gated[1] or any(getattr(a, name) != getattr(b, name) for name in APART)


def in_words(differing: Mapping[str, Two]) -> str:
    """Return the fields of `spec_differences` as one phrase: `hidden size 576 / 64, layers 30 / 4`."""
    return ", ".join(
        f"{WORDS.get(name, name.replace('_', ' '))} {plain(one)} / {plain(two)}" for name, (one, two) in differing.items()
    )


def plain(value: Any) -> str:
    """Return a value as a person would write it."""
    known = {None: "none", True: "yes", False: "no"}
    return (
        known[value]
        if value is None or isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def effective(rope: Rope) -> dict[str, Any]:
    """Return the fields that a rope computes with. A factor of 1 stretches nothing, whatever the kind."""
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
