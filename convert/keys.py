"""Claims on `config.json`, each read both ways: a field, a constant, a key that changes nothing."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from mconv.errors import ConfigError
from mconv.spec import ModelSpec

Config = dict[str, Any]


@runtime_checkable
class Key(Protocol):
    """One claim on `config.json`: `read` takes its keys out of what is left, `write` puts them back."""

    def read(self, left: Config) -> Config: ...

    def write(self, spec: ModelSpec, out: Config) -> None: ...


REQUIRED = object()


def typed(name: str, value: Any, kind: type) -> Any:
    """`value` as `kind`, where a whole number may stand for a float and nothing else for anything else."""
    if kind is float and type(value) is int and abs(value) < 1 << 53:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"config.json: {name} is {repr(value)[:60]}, not {kind.__name__}")
    return value


def take(left: Config, name: str, kind: type, default: Any = REQUIRED) -> Any:
    """The value of a key, taken out of what is left. `default` is what transformers assumes where it is absent."""
    value = left.pop(name, None)
    if value is None and default is REQUIRED:
        raise ConfigError(f"config.json has no {name!r}, which decides the architecture")
    return typed(name, default if value is None else value, kind)


@dataclass(frozen=True, slots=True)
class Field:
    """A key that is a field of the spec. `default` is what transformers assumes where the key is absent."""

    hf: str
    spec: str
    type: type
    default: Any = REQUIRED

    def read(self, left: Config) -> Config:
        return {self.spec: take(left, self.hf, self.type, self.default)}

    def write(self, spec: ModelSpec, out: Config) -> None:
        out[self.hf] = getattr(spec, self.spec)


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention geometry, where two of the keys default to what follows from the others."""

    groups: int | None = None
    """num_key_value_heads where the key is absent; null, here and there, is one for each head."""
    width: int | None = None
    """head_dim where the key is absent; None: hidden_size over the heads."""

    def read(self, left: Config) -> Config:
        heads = take(left, "num_attention_heads", int)
        left.setdefault("num_key_value_heads", self.groups)
        hidden = take(left, "hidden_size", int)
        groups = take(left, "num_key_value_heads", int, heads)
        width = take(left, "head_dim", int, self.width or (hidden // heads if heads > 0 else 0))
        return {
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "num_query_groups": groups,
            "kv_channels": width,
        }

    def write(self, spec: ModelSpec, out: Config) -> None:
        out["hidden_size"] = spec.hidden_size
        out["num_attention_heads"] = spec.num_attention_heads
        out["num_key_value_heads"] = spec.num_query_groups
        out["head_dim"] = spec.kv_channels


@dataclass(frozen=True, slots=True)
class Biases:
    """A flag that gives several linears their bias; on the way back they must agree."""

    hf: str
    spec: tuple[str, ...]

    def read(self, left: Config) -> Config:
        return dict.fromkeys(self.spec, take(left, self.hf, bool, False))

    def write(self, spec: ModelSpec, out: Config) -> None:
        values = {getattr(spec, name) for name in self.spec}
        if len(values) > 1:
            raise ConfigError(f"config.json has one {self.hf} for {', '.join(self.spec)}, which differ in this model")
        out[self.hf] = values.pop()


@dataclass(frozen=True, slots=True)
class Choice:
    """A key whose values are those of a field of the spec under other names; of several names the first is written."""

    hf: str
    spec: str
    values: Mapping[str, str]
    default: str

    def read(self, left: Config) -> Config:
        value = take(left, self.hf, str, self.default)
        if value not in self.values:
            known = ", ".join(map(repr, self.values))
            raise ConfigError(f"config.json: {self.hf} is {value!r}; mconv supports only {known} in this family")
        return {self.spec: self.values[value]}

    def write(self, spec: ModelSpec, out: Config) -> None:
        value = getattr(spec, self.spec)
        out[self.hf] = next((name for name, ours in self.values.items() if ours == value), self.default)


@dataclass(frozen=True, slots=True)
class Always:
    """What every model of the family has, so that no key says it."""

    spec: Mapping[str, Any]

    def read(self, left: Config) -> Config:
        return dict(self.spec)

    def write(self, spec: ModelSpec, out: Config) -> None: ...


@dataclass(frozen=True, slots=True)
class Constant:
    """A key that has one meaning we compute: refused when it says otherwise. `also` are other spellings of the same."""

    hf: str
    value: Any
    also: tuple[Any, ...] = ()
    emit: bool = True

    def read(self, left: Config) -> Config:
        value = left.pop(self.hf, self.value)
        if value != self.value and value not in self.also:
            raise ConfigError(f"config.json: {self.hf} is {value!r}; mconv supports only {self.value!r} in this family")
        return {}

    def write(self, spec: ModelSpec, out: Config) -> None:
        if self.emit:
            out[self.hf] = self.value


@dataclass(frozen=True, slots=True)
class Kept:
    """Keys that do not change the function: kept where there is a config to keep them in."""

    names: tuple[str, ...]
    emit: Mapping[str, Any] = field(default_factory=dict)

    def read(self, left: Config) -> Config:
        for name in self.names:
            left.pop(name, None)
        return {}

    def write(self, spec: ModelSpec, out: Config) -> None:
        out.update(self.emit)


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name of a key, as transformers reads it; the two must not differ. Its row stands before that of the key."""

    hf: str
    of: str

    def read(self, left: Config) -> Config:
        value = left.pop(self.hf, None)
        if value is None:
            return {}
        if left.get(self.of) is None:
            left[self.of] = value
        elif left[self.of] != value:
            raise ConfigError(f"config.json: {self.hf} is {value!r} but {self.of}, the same thing, is {left[self.of]!r}")
        return {}

    def write(self, spec: ModelSpec, out: Config) -> None: ...


@dataclass(frozen=True, slots=True)
class Neutral:
    """Keys of other families with the values that say nothing; with any other value, no row claims them."""

    values: Mapping[str, tuple[Any, ...]]

    def read(self, left: Config) -> Config:
        for name in left.keys() & self.values.keys():
            if any(equal(left[name], value) for value in self.values[name]):
                del left[name]
        return {}

    def write(self, spec: ModelSpec, out: Config) -> None: ...


@dataclass(frozen=True, slots=True)
class SaysNothing:
    """Any key whose value is false, zero or empty, but those `but` names or whose zero would mean something.

    Its row stands last: what is left then, transformers' code of the family does not read.
    """

    but: Collection[str]
    zero_means: re.Pattern[str]
    """Names (a part of one) of factors and sizes, of which zero is a value like any other."""

    def read(self, left: Config) -> Config:
        for name in [name for name, value in left.items() if self._nothing(name, value)]:
            del left[name]
        return {}

    def _nothing(self, name: str, value: Any) -> bool:
        if name in self.but or (type(value) in (int, float) and self.zero_means.search(name)):
            return False
        return value in (0, "", [], {})

    def write(self, spec: ModelSpec, out: Config) -> None: ...


def equal(a: Any, b: Any) -> bool:
    """Return whether two JSON values are equal; true is not one, and false not zero."""
    return (type(a) is bool) == (type(b) is bool) and a == b
