"""Qwen2 and Qwen2.5: LLaMA's weights, with a bias on query, key and value alone.

Attention may look back only so far, in all layers or in none: transformers lets the first `max_window_layers` see
everything, unless `layer_types` says of each layer which it is. Source: transformers' `configuration_qwen2.py`.
"""

from dataclasses import dataclass

from mconv.convert.families.llama import LLAMA, SHARED
from mconv.convert.spelling.keys import Always, Config, Field, Heads, Left, take
from mconv.convert.spelling.known import COMMON
from mconv.convert.spelling.table import Family
from mconv.errors import ConfigError
from mconv.spec import ModelSpec

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class Window:
    """Four keys that say together which layers have a sliding window: all or none, or mconv refuses them."""

    def read(self, left: Left) -> Config:
        used = take(left, "use_sliding_window", bool, False)
        window = left.pop("sliding_window", 4096)
        first = take(left, "max_window_layers", int, 28)
        layers = left.get("num_hidden_layers")
        types = left.pop("layer_types", None)
        if types is None:
            types = [SLIDING if used and window is not None and i >= first else FULL for i in range(_count(layers))]
        if types != [FULL] * _count(layers) and types != [SLIDING] * _count(layers):
            raise ConfigError(
                f"config.json: use_sliding_window {used}, max_window_layers {first} and layer_types {repr(types)[:80]} "
                f"give {layers} layers a window each or not; mconv supports only one kind for all layers"
            )
        if SLIDING not in types:
            return {"sliding_window": None}
        if not used or type(window) is not int:
            raise ConfigError(
                f"config.json: layer_types says {SLIDING!r}, but use_sliding_window is {used}, sliding_window {window!r}"
            )
        return {"sliding_window": window}

    def write(self, spec: ModelSpec, out: Config) -> None:
        out["use_sliding_window"] = spec.sliding_window is not None
        out["sliding_window"] = spec.sliding_window
        out["max_window_layers"] = spec.num_layers if spec.sliding_window is None else 0


def _count(layers: object) -> int:
    """Return the number of layers; of another value the row that takes it, or the files' depth, says what is wrong."""
    return layers if type(layers) is int and layers < 1 << 16 else 0


QWEN2 = Family(
    name="qwen2",
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    rows=LLAMA.rows,
    config=(
        Window(),
        *SHARED,
        #     config.json                spec
        Field("max_position_embeddings", "max_position_embeddings", int, 32768),
        Heads(groups=32),
        Always({"qkv_bias": True}),
        *COMMON,
    ),
    base=LLAMA.base,
    headless="Qwen2Model",
    buffers=LLAMA.buffers,
)  # fmt: skip
