"""`params.json` beside Meta's and Mistral's own weights: a table of its keys."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.formats import meta
from mconv.convert.formats.hf import read_json
from mconv.convert.spelling.claim import CONFIG_KEY, accept, claim, refuse_claimed
from mconv.convert.spelling.keys import Config, Constant, Field, Heads, Kept, Key, Left, Named, take
from mconv.convert.spelling.known import ZERO_MEANS, SaysNothing
from mconv.convert.spelling.values import says_nothing, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """The model that a `params.json` describes; None for a value that it leaves out."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    norm_epsilon: float
    ffn_hidden_size: int | None
    """Width of the MLP: Mistral's files say it, Meta's follows from the hidden size."""
    multiple_of: int | None
    ffn_dim_multiplier: float
    vocab_size: int | None
    tied_embeddings: bool | None
    max_position_embeddings: int | None
    max_seq_len: int | None
    sliding_window: int | None
    rope_theta: float | None
    use_scaled_rope: bool
    rope_scaling_factor: float | None
    rope_high_freq_factor: float

    @property
    def is_mistral(self) -> bool:
        """Return whether the file is Mistral's."""
        return self.ffn_hidden_size is not None


@dataclass(frozen=True, slots=True)
class Positive:
    """Keys that hold numbers above zero. Its row stands before theirs."""

    names: tuple[str, ...]

    def read(self, left: Left) -> Config:
        for name in self.names:
            value = left.get(name)
            if isinstance(value, (int, float)) and type(value) is not bool and not 0 < value < 1 << 53:
                raise left.error(f"{name} is {shown(name, value)}; it must be positive")
        return {}

    def write(self, spec: Params, out: Config) -> None: ...


@dataclass(frozen=True, slots=True)
class Foreign:
    """Keys of other architectures, and what they are."""

    kinds: Mapping[str, str]

    def read(self, left: Left) -> Config:
        for name in left.keys() & self.kinds.keys():
            if not says_nothing(left.pop(name)):
                raise left.error(f"{name} says that it is {self.kinds[name]}, which mconv does not convert")
        return {}

    def write(self, spec: Params, out: Config) -> None: ...


@dataclass(frozen=True, slots=True)
class Window(Named):
    """A sliding window as one number for all layers: it may be a text, or a list that repeats over the layers."""

    def read(self, left: Left) -> Config:
        value = left.get(self.key)
        if isinstance(value, list) and value and all(one == value[0] for one in value):
            value = left[self.key] = value[0]
        if isinstance(value, list):
            raise left.error(
                f"{self.key} is {shown(self.key, value)}: layers with and without, which mconv does not convert"
            )
        if isinstance(value, str) and value.isdecimal():
            left[self.key] = int(value)
        return {"sliding_window": take(left, self.key, int, None)}

    def write(self, spec: Params, out: Config) -> None:
        out[self.key] = spec.sliding_window


FOREIGN = {
    "moe": "a mixture of experts", "vision_encoder": "a model of images and text", "multimodal": "one of several media",
    "quantization": "quantised weights", "quantization_config": "quantised weights", "lora": "an adapter within it",
    "yarn": "rope scaling by YaRN", "rope_scaling": "a rope scaling of Mistral's", "q_lora_rank": "latent attention",
    "llama_4_scaling": "queries scaled by position", "kv_lora_rank": "latent attention",
    "qk_nope_head_dim": "latent attention", "qk_rope_head_dim": "latent attention", "v_head_dim": "latent attention",
    "qk_norm": "norms of queries and keys", "use_qk_norm": "norms of queries and keys",
}  # fmt: skip
POSITIVE = (
    "dim", "n_layers", "n_heads", "n_kv_heads", "norm_eps", "rope_theta", "max_seq_len", "multiple_of",
    "ffn_dim_multiplier", "rope_scaling_factor", "rope_high_freq_factor", "hidden_dim", "head_dim",
    "max_position_embeddings",
)  # fmt: skip
TABLE: tuple[Key, ...] = (
    Positive(POSITIVE), Foreign(FOREIGN),
    Heads(names=("dim", "n_heads", "n_kv_heads", "head_dim"), even=True),
    #     params.json              Params
    Field("n_layers",              "num_layers", int),
    Field("norm_eps",              "norm_epsilon", float),
    Field("hidden_dim",            "ffn_hidden_size", int, None),
    Field("multiple_of",           "multiple_of", int, None),
    Field("ffn_dim_multiplier",    "ffn_dim_multiplier", float, 1.0),
    Field("vocab_size",            "vocab_size", int, None),
    Field("tied_embeddings",       "tied_embeddings", bool, None),
    Field("max_position_embeddings", "max_position_embeddings", int, None),
    Field("max_seq_len",           "max_seq_len", int, None),
    Window("sliding_window"),
    Field("rope_theta",            "rope_theta", float, None),
    Field("use_scaled_rope",       "use_scaled_rope", bool, False),
    Field("rope_scaling_factor",   "rope_scaling_factor", float, None),
    Field("rope_high_freq_factor", "rope_high_freq_factor", float, 4.0),
    Constant("model_type",         "transformer", emit=False),
    Constant("activation",         "silu", emit=False),
    Constant("use_biases",         False, emit=False),
    Constant("causal",             True, emit=False),
    Constant("attention_bias",     False, emit=False),
    Constant("norm_type",          "rms", emit=False),
    Kept(("dtype", "name", "version", "model_name", "tokenizer", "max_batch_size", "model_parallel_size")),
    SaysNothing(but=(), zero_means=ZERO_MEANS),
)  # fmt: skip


def read(folder: Path, ignore: Collection[str] = ()) -> Params:
    """Return what `params.json` says. Raises ConfigError, by name, on a key that no row claims and that may not pass."""
    return _read(folder, ignore)[0]


def passed_over(folder: Path, ignore: Collection[str]) -> Config:
    """Return the keys of `params.json` that `ignore` names, with their values. Raises ConfigError on a claimed one."""
    return _read(folder, ignore)[1]


def _read(folder: Path, ignore: Collection[str]) -> tuple[Params, Config]:
    """Return what a `params.json` says, and the keys that pass because `ignore` names them."""
    path = folder / meta.PARAMS
    values: dict[str, Any] = {name: value for name, value in read_json(path).items() if value is not None}
    left = Left(values, prefix=f"{path}: ")
    fields = claim(TABLE, left, ignore=ignore)
    refuse_claimed(CONFIG_KEY, values.keys() & set(ignore) - left.keys(), prefix=left.prefix)
    return Params(**fields), accept(left, of="Meta's or Mistral's files", ignore=ignore)
