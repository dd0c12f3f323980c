"""`ModelSpec`: one architecture, in Megatron's words, whatever family or dialect it came from."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from mconv.errors import ConfigError

ROPE_KEYS = {"base": "base (rope_theta, rotary_base)"}
"""Other programs' names of fields."""


UNNAMED = ""
"""The family of a model of which only args are known: they do not say what Hugging Face called it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding. Rows are half-split (`rotate_half`); a dialect may store them otherwise."""

    kind: Literal["default", "linear", "llama3"] = "default"
    base: float = 10000.0
    factor: float = 1.0
    """Positions are stretched by this (`linear`), or low frequencies are (`llama3`)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        for name in ("base", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"rope: {ROPE_KEYS.get(name, name)} is {getattr(self, name)}; it must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer: everything that its function depends on, and nothing else.

    Biases are told apart by place: `qkv_bias` (fused QKV), `proj_bias` (attention output), `mlp_bias` (MLP).
    """

    family: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    """Width of one head; free of `hidden_size / num_attention_heads`."""
    vocab_size: int
    """True size: the rows that mean something. Padding belongs to a layout, not to the model."""
    max_position_embeddings: int
    norm_epsilon: float
    rope: Rope = field(default_factory=Rope)
    position: Literal["rope", "alibi", "learned"] = "rope"
    """The encoding of positions: rotary embedding; ALiBi's bias on attention scores; or a vector learned for each, added
    to the token's, of which there are `max_position_embeddings` (`rope` then says nothing)."""
    sliding_window: int | None = None
    """Keys that a query sees, itself included; None: all before it."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm, or LayerNorm with its bias."""
    activation: Literal["swiglu", "gelu", "gelu_tanh"] = "swiglu"
    """`swiglu`: a gated MLP of two halves; not gated: `gelu`, the exact one (erf), and `gelu_tanh`, GPT-2's."""
    parallel_attention: bool = False
    """Attention and MLP read the same hidden states, and both are added to them (Falcon); else one after the other."""
    shared_norm: bool = False
    """With `parallel_attention`: one norm for both, instead of one each."""
    qk_norm: bool = False
    """A norm on each head of query and key, before rotary embedding: of the kind of `norm`, without a bias."""
    tied_embeddings: bool = False
    qkv_bias: bool = False
    proj_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        for name in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups",
                     "kv_channels", "vocab_size", "max_position_embeddings"):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a positive integer")
        if self.sliding_window is not None and (type(self.sliding_window) is not int or self.sliding_window < 1):
            raise ConfigError(f"sliding_window is {self.sliding_window!r}; it must be a positive integer, or null")
        if self.shared_norm and not self.parallel_attention:
            raise ConfigError("one norm for attention and MLP (shared_norm) needs parallel attention")
        if not 0 <= self.norm_epsilon < 1:
            raise ConfigError(f"norm_epsilon (rms_norm_eps) is {self.norm_epsilon}; it must be in [0, 1)")
        if self.num_attention_heads % self.num_query_groups:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_query_groups {self.num_query_groups} (num_key_value_heads in config.json)"
            )

    @property
    def queries_per_group(self) -> int:
        """Query heads that share one key and value head."""
        return self.num_attention_heads // self.num_query_groups

    @property
    def two_norms(self) -> bool:
        """True where attention and MLP run side by side behind a norm each."""
        return self.parallel_attention and not self.shared_norm

    @property
    def norm_bias(self) -> bool:
        """True where the norms have a bias."""
        return self.norm == "layer"

    @property
    def sizes(self) -> dict[str, int]:
        """Size of every named axis: the whole vocabulary for reading a row of a family's table."""
        q = self.queries_per_group
        return {
            "v": self.vocab_size,
            "d": self.hidden_size,
            "g": self.num_query_groups,
            "q": q,
            "s": q + 2,  # the slots of one group: its queries, one key, one value
            "h": self.kv_channels,
            "p": 2 if self.activation == "swiglu" else 1,  # the halves of a gated MLP: gate, up
            "f": self.ffn_hidden_size,
            "m": self.max_position_embeddings,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelSpec":
        """The inverse of `to_dict`. Raises ConfigError on a field that this version does not know."""
        if not isinstance(values.get("rope", {}), dict):
            raise ConfigError(f"model spec has rope {values['rope']!r}; an object was expected")
        for kind, given in ((cls, values), (Rope, values.get("rope", {}))):
            if unknown := sorted(set(given) - {f.name for f in dataclasses.fields(kind)}):
                raise ConfigError(f"model spec has unknown fields {unknown}; it was written by another mconv version")
        if not isinstance(values.get("family", ""), str):
            raise ConfigError(f"model spec has family {values['family']!r}; a name was expected")
        try:
            return cls(**{**values, "rope": Rope(**values["rope"])})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"model spec is incomplete or has values of a wrong kind ({error})") from error
