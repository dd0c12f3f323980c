"""Rows that claim the keys of a file, each read both ways.

A file is any mapping: a `config.json`, a checkpoint's args, the model section of a `run_config.yaml`, a `params.json`.
Its values become fields of a dataclass (`ModelSpec`, `Layout`), and fields become values by the same row. `claim.py`
reads a whole table, and stops at what none of its rows claims.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from mconv.convert.spelling.values import one_of, shown
from mconv.errors import ConfigError

Config = dict[str, Any]
REQUIRED = object()
"""The default of a key that must be there."""


class Left(dict[Any, Any]):
    """The keys of a file that no row has taken yet. (A hostile file may have one that is no text.)"""

    def __init__(self, values: Mapping[Any, Any], *, prefix: str = "config.json: ", loose: bool = False) -> None:
        super().__init__(values)
        self.prefix = prefix
        """The text before a key's name in messages."""
        self.loose = loose
        """True where 0 and 1 may stand for false and true."""

    def error(self, text: str) -> ConfigError:
        """Return the error that says what is wrong with a key."""
        return ConfigError(self.prefix + text)

    def typed(self, name: str, value: Any, kind: type) -> Any:
        """Return a value as `kind`: a whole number may stand for a float, and nothing else for anything else."""
        if kind is float and type(value) is int and abs(value) < 1 << 53:
            value = float(value)
        if kind is bool and self.loose and one_of(value, (0, 1, True)):
            value = bool(value)
        if type(value) is not kind:
            raise self.error(f"{name} is {shown(name, value)}, not {kind.__name__}")
        return value


def take(left: Left, name: str, kind: type, default: Any = REQUIRED) -> Any:
    """Return the value of a key, taken out of what is left.

    `default`: what it is where the key is absent or null; a function is asked with the keys that are left.
    """
    default = default(left) if callable(default) else default
    if name not in left and default is REQUIRED:
        raise left.error(f"{name} is missing, and it decides the architecture")
    value = left.pop(name, None)
    if value is None and default is None:
        return None
    return left.typed(name, default if value is None and default is not REQUIRED else value, kind)


# ---- rows ------------------------------------------------------------------------------------------------------------
@runtime_checkable
class Key(Protocol):
    """One claim on a file: `read` takes its keys out of what is left, `write` puts them back."""

    def read(self, left: Left) -> Config: ...

    def write(self, spec: Any, out: Config) -> None: ...


@runtime_checkable
class NamedKey(Key, Protocol):
    """A claim that says of which keys it is."""

    @property
    def names(self) -> Collection[str]: ...


@dataclass(frozen=True, slots=True)
class Named:
    """A row that claims one key."""

    key: str

    @property
    def names(self) -> Collection[str]:
        """Return the keys that the row claims."""
        return (self.key,)


@dataclass(frozen=True, slots=True)
class Field(Named):
    """A key that is a field of the spec."""

    spec: str
    type: type
    default: Any = REQUIRED
    """The value where the key is absent or null, or a function that returns it."""
    blank: bool = False
    """True where null is written in place of the default."""

    def read(self, left: Left) -> Config:
        return {self.spec: take(left, self.key, self.type, self.default)}

    def write(self, spec: Any, out: Config) -> None:
        value = getattr(spec, self.spec)
        out[self.key] = None if self.blank and value == self.default else value


@dataclass(frozen=True, slots=True)
class Follows(Named):
    """A key that repeats a field of the spec, for programs that look for it there; it is not read."""

    spec: str

    def read(self, left: Left) -> Config:
        left.pop(self.key, None)
        return {}

    def write(self, spec: Any, out: Config) -> None:
        out[self.key] = getattr(spec, self.spec)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Attention geometry, where two of the keys default to what follows from the others."""

    names: tuple[str, str, str, str] = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    """Keys of the hidden size, the heads, the query groups, the width of a head."""
    groups: int | None = None
    """Query groups where the key is absent; null, here and there, is one for each head."""
    width: int | None = None
    """Width of a head where the key is absent; None: the hidden size over the heads."""
    even: bool = False
    """True where the heads must divide the hidden size."""

    def read(self, left: Left) -> Config:
        size, number, shared, wide = self.names
        hidden, heads = take(left, size, int), take(left, number, int)
        left.setdefault(shared, self.groups)
        if self.even and left.get(wide) is None and heads > 0 and hidden % heads:
            raise left.error(f"{size} {hidden} is not a multiple of {number} {heads}")
        return {
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "num_query_groups": take(left, shared, int, heads),
            "kv_channels": take(left, wide, int, self.width or (hidden // heads if heads > 0 else 0)),
        }

    def write(self, spec: Any, out: Config) -> None:
        values = (spec.hidden_size, spec.num_attention_heads, spec.num_query_groups, spec.kv_channels)
        out.update(zip(self.names, values, strict=True))


@dataclass(frozen=True, slots=True)
class Biases(Named):
    """A flag that gives several linears their bias; on the way back they must agree."""

    spec: tuple[str, ...]

    def read(self, left: Left) -> Config:
        return dict.fromkeys(self.spec, take(left, self.key, bool, False))

    def write(self, spec: Any, out: Config) -> None:
        values = {getattr(spec, name) for name in self.spec}
        if len(values) > 1:
            raise ConfigError(f"one key, {self.key}, says {', '.join(self.spec)}, which differ in this model")
        out[self.key] = values.pop()


@dataclass(frozen=True, slots=True)
class Choice(Named):
    """A key whose values are those of a field of the spec under other names; of several names the first is written."""

    spec: str
    values: Mapping[Any, Any]
    default: Any
    """The name where the key is absent; null is a name like any other."""

    def read(self, left: Left) -> Config:
        value = left.pop(self.key, self.default)
        for name, ours in self.values.items():
            if one_of(value, (name,)):
                return {self.spec: ours}
        known = ", ".join(map(repr, self.values))
        raise left.error(f"{self.key} is {shown(self.key, value)}; mconv supports only {known}")

    def write(self, spec: Any, out: Config) -> None:
        value = getattr(spec, self.spec)
        out[self.key] = next((name for name, ours in self.values.items() if ours == value), self.default)


@dataclass(frozen=True, slots=True)
class Always:
    """Values that all models of the file have, so that no key says them."""

    spec: Mapping[str, Any]

    def read(self, left: Left) -> Config:
        return dict(self.spec)

    def write(self, spec: Any, out: Config) -> None: ...


@dataclass(frozen=True, slots=True)
class Constant(Named):
    """A key that has one meaning we compute: refused when it says otherwise. `also` are other spellings of the same."""

    value: Any
    also: tuple[Any, ...] = ()
    emit: bool = True

    def read(self, left: Left) -> Config:
        value = left.pop(self.key, self.value)
        if not one_of(value, (self.value, *self.also)):
            raise left.error(f"{self.key} is {shown(self.key, value)}; mconv supports only {self.value!r}")
        return {}

    def write(self, spec: Any, out: Config) -> None:
        if self.emit:
            out[self.key] = self.value


@dataclass(frozen=True, slots=True)
class Kept:
    """Keys that do not change the function: kept where there is a file to keep them in."""

    names: tuple[str, ...]
    emit: Mapping[str, Any] = field(default_factory=dict)

    def read(self, left: Left) -> Config:
        for name in self.names:
            left.pop(name, None)
        return {}

    def write(self, spec: Any, out: Config) -> None:
        out.update(self.emit)


@dataclass(frozen=True, slots=True)
class Alias(Named):
    """Another name of a key; the two must not differ. Its row stands before that of the key."""

    of: str
    spec: str | None = None
    """The field of the spec that is written under this name too; None: it is only read."""

    def read(self, left: Left) -> Config:
        value = left.pop(self.key, None)
        if value is None:
            return {}
        if left.get(self.of) is None:
            left[self.of] = value
        elif left[self.of] != value:
            ours, theirs = shown(self.key, value), shown(self.of, left[self.of])
            raise left.error(f"{self.key} is {ours} but {self.of}, the same thing, is {theirs}")
        return {}

    def write(self, spec: Any, out: Config) -> None:
        if self.spec:
            out[self.key] = getattr(spec, self.spec)
