"""The keys of `config.json` that set rotary position embedding."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from mconv.convert.spelling.keys import Config, Left
from mconv.errors import ConfigError
from mconv.spec import ModelSpec, Rope

ROPE_FIELDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""The kinds that mconv computes, and what transformers reads of each besides the base."""
UNREAD = (
    *ROPE_FIELDS["llama3"], "attention_factor", "beta_fast", "beta_slow", "short_factor", "long_factor", "mscale",
    "mscale_all_dim", "truncate",
)  # fmt: skip
"""Settings that transformers reads for other kinds of scaling and ignores for the rest."""
OLD_KEYS = ("rope_theta", "rope_scaling")
"""Keys of transformers 4, which does not know `rope_parameters`."""
TRAINED = "original_max_position_embeddings"
"""The key of the length of context first trained on: in the settings, or, for transformers, at the top level."""


@dataclass(frozen=True, slots=True)
class RopeKeys:
    """Rotary settings: `rope_parameters` as transformers 5 writes them, or `rope_theta` and `rope_scaling` as 4 did.

    Written in both spellings, because a transformers 4 reader of the new one silently falls back to base 10000. Its row
    stands before that of `max_position_embeddings`. A setting that no rule claims is left over as `rope_scaling.NAME`.
    """

    base: float = 10000.0

    def read(self, left: Left) -> Config:
        theta, trained = left.pop("rope_theta", None), left.pop(TRAINED, None)
        ropes: dict[str, Rope] = {}
        for where in ("rope_parameters", "rope_scaling"):
            values = left.pop(where, None)
            if values:  # an empty one says nothing, whichever it is
                ropes[where] = self._rope(values, theta, trained, where, left)
        if not ropes:
            return {"rope": self._rope({}, theta, trained, "rope_scaling", left)}
        if len(set(ropes.values())) > 1:
            raise ConfigError(
                f"config.json: rope_scaling says {ropes['rope_scaling']} but rope_parameters says "
                f"{ropes['rope_parameters']}"
            )
        return {"rope": next(iter(ropes.values()))}

    def _rope(self, values: Any, theta: Any, trained: Any, where: str, left: Left) -> Rope:
        if not isinstance(values, dict):
            raise ConfigError(f"config.json: {where} is {values!r}, not an object")
        values = {k: v for k, v in values.items() if v is not None}
        base = self._base(values.pop("rope_theta", None), theta, where, left)
        kind = _kind(values, where, left)
        if values.get("partial_rotary_factor") == 1:
            del values["partial_rotary_factor"]  # transformers 5 moves it here
        wanted = ROPE_FIELDS[kind]
        if TRAINED in wanted:
            _add_trained(values, trained, left, where)
        if missing := [name for name in wanted if name not in values]:
            raise ConfigError(f"config.json: {where} of type {kind!r} lacks {missing}")
        types = {f.name: int if f.type is int else float for f in dataclasses.fields(Rope)}
        fields = {name: left.typed(f"{where}.{name}", values.pop(name), types[name]) for name in wanted}
        _leave(values, where, left)
        return Rope(kind=kind, base=base, **fields)  # type: ignore[arg-type]

    def _base(self, inner: Any, theta: Any, where: str, left: Left) -> float:
        if inner is not None and theta is not None and inner != theta:
            raise ConfigError(f"config.json: rope_theta is {theta} but {where}.rope_theta is {inner}")
        base = next((x for x in (inner, theta) if x is not None), self.base)
        return float(left.typed("rope_theta", base, float))

    def write(self, spec: ModelSpec, out: Config) -> None:
        rope = spec.rope
        scaling = {"rope_type": rope.kind, **{name: getattr(rope, name) for name in ROPE_FIELDS[rope.kind]}}
        out["rope_theta"] = rope.base
        # transformers before 4.43 takes `type` and `factor` and nothing else; later ones read that, too.
        out["rope_scaling"] = {"default": None, "linear": {"type": "linear", "factor": rope.factor}}.get(
            rope.kind, scaling
        )
        out["rope_parameters"] = {"rope_theta": rope.base, **scaling}


def _kind(values: Config, where: str, left: Left) -> str:
    """Take the type out of the settings, by either of its names, and return it."""
    named = {left.typed(f"{where}.{n}", values.pop(n), str) for n in ("rope_type", "type") if n in values}
    if len(named) > 1:
        raise ConfigError(f"config.json: {where} has two types, {sorted(named)}")
    kind = str(next(iter(named), "default"))
    if kind not in ROPE_FIELDS:
        raise ConfigError(f"config.json: {where} has type {kind!r}; mconv supports {list(ROPE_FIELDS)}")
    return kind


def _add_trained(values: Config, trained: Any, left: Left, where: str) -> None:
    """Set the length that frequencies are scaled from, which transformers looks for in three places."""
    if trained is not None and values.setdefault(TRAINED, trained) != trained:
        raise ConfigError(f"config.json: {TRAINED} is {trained} but {where}.{TRAINED} is {values[TRAINED]}")
    if TRAINED not in values and left.get("max_position_embeddings") is not None:
        values[TRAINED] = left.typed("max_position_embeddings", left["max_position_embeddings"], int)


def _leave(values: Config, where: str, left: Left) -> None:
    """Drop the settings that only other kinds have; what no rule claims is left over under the name of both."""
    if nested := [name for name, value in values.items() if isinstance(value, dict)]:
        raise ConfigError(
            f"config.json: {where} has settings of their own for {nested}; mconv supports one rotary embedding for all "
            "layers"
        )
    if "partial_rotary_factor" in values:
        raise ConfigError(
            f"config.json: {where}.partial_rotary_factor is {values['partial_rotary_factor']}; mconv supports only 1"
        )
    left.update({f"{where}.{name}": value for name, value in values.items() if name not in UNREAD})
