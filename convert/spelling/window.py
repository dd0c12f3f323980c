"""The keys of `config.json` that say which keys a query sees."""

from dataclasses import dataclass
from typing import Any

from mconv.convert.spelling.keys import Config, Left
from mconv.convert.spelling.values import equal
from mconv.errors import ConfigError
from mconv.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Window:
    """The keys that a query sees: a sliding window, or all before it; `layer_types` must agree for every layer.

    Its row stands before those that take the number of layers and of positions, whose names it has.
    """

    layers: str
    positions: str
    default: int | None = None
    """The window where the key is absent."""
    known: bool = False
    """True where the family has a window. transformers' cache drops old keys all the same where a config has one."""

    def read(self, left: Left) -> Config:
        window = left.pop("sliding_window", self.default)
        if window is not None:
            left.typed("sliding_window", window, int)
        if not self.known and window is not None:
            self._beyond(window, left.get(self.positions))
            window = None
        self._layer_types(left.pop("layer_types", None), window, left.get(self.layers))
        if left.get("use_sliding_window") in (None, False, window is not None):
            left.pop("use_sliding_window", None)
        if window is None or equal(left.get("max_window_layers"), 0):  # Qwen2's: the first layers that see everything
            left.pop("max_window_layers", None)
        return {"sliding_window": window} if self.known else {}

    def _beyond(self, window: int, positions: Any) -> None:
        if not (type(positions) is int and window >= positions):
            raise ConfigError(
                f"config.json: sliding_window is {window}, below {self.positions} ({positions}); this family has no "
                "window, and programs differ in what they make of it: if the model has none, remove the key"
            )

    def _layer_types(self, types: Any, window: int | None, layers: Any) -> None:
        if types is None:
            return
        names = ("full_attention", "attention") if window is None else ("sliding_attention",)
        if not isinstance(types, list) or any(name not in names for name in types):
            raise ConfigError(
                f"config.json: layer_types is {repr(types)[:80]}; with sliding_window {window} mconv supports only "
                f"{names[0]!r} for every layer in this family"
            )
        if len(types) != layers:
            raise ConfigError(f"config.json: layer_types has {len(types)} entries, but {self.layers} is {layers}")

    def write(self, spec: ModelSpec, out: Config) -> None:
        if self.known:
            out["sliding_window"] = spec.sliding_window
