"""Claims on `config.json`, each read both ways: a field, a constant, a key that changes nothing."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from mconv.errors import ConfigError
from mconv.spec import ModelSpec, Rope

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
    null: bool = False
    """Whether null is a value of its own; else it says no more than an absent key."""

    def read(self, left: Config) -> Config:
        if self.null and left.get(self.hf, self) is None:
            return {self.spec: left.pop(self.hf)}
        return {self.spec: take(left, self.hf, self.type, self.default)}

    def write(self, spec: ModelSpec, out: Config) -> None:
        out[self.hf] = getattr(spec, self.spec)


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention geometry, where two of the keys default to what follows from the others."""

    groups: int | None = None
    """num_key_value_heads where the key is absent; null, here and there, is one for each head."""

    def read(self, left: Config) -> Config:
        heads = take(left, "num_attention_heads", int)
        left.setdefault("num_key_value_heads", self.groups)
        hidden = take(left, "hidden_size", int)
        groups = take(left, "num_key_value_heads", int, heads)
        width = take(left, "head_dim", int, hidden // heads if heads > 0 else 0)
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


ROPE_FIELDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True, slots=True)
class RopeKeys:
    """Rotary settings: `rope_parameters` as transformers 5 writes them, or `rope_theta` and `rope_scaling` as 4 did.

    Written in both spellings, because a transformers 4 reader of the new one silently falls back to base 10000.
    """

    base: float = 10000.0

    def read(self, left: Config) -> Config:
        theta = left.pop("rope_theta", None)
        old, new = left.pop("rope_scaling", None), left.pop("rope_parameters", None)
        ropes = []
        if new is not None:
            ropes.append(self._rope(new, theta, "rope_parameters"))
        if new is None or old is not None:
            ropes.append(self._rope(old or {}, theta, "rope_scaling"))
        if len(set(ropes)) > 1:
            raise ConfigError(f"config.json: rope_scaling says {ropes[1]} but rope_parameters says {ropes[0]}")
        return {"rope": ropes[0]}

    def _rope(self, values: Any, theta: Any, where: str) -> Rope:
        if not isinstance(values, dict):
            raise ConfigError(f"config.json: {where} is {values!r}, not an object")
        values = {k: v for k, v in values.items() if v is not None}
        inner = values.pop("rope_theta", None)
        if inner is not None and theta is not None and inner != theta:
            raise ConfigError(f"config.json: rope_theta is {theta} but {where}.rope_theta is {inner}")
        named = {n: typed(f"{where}.{n}", values.pop(n), str) for n in ("rope_type", "type") if n in values}
        kinds = set(named.values()) or {"default"}
        if len(kinds) > 1 or (kind := kinds.pop()) not in ROPE_FIELDS:
            raise ConfigError(
                f"config.json: {where} has type {sorted(map(str, kinds)) or kind!r}; mconv supports {list(ROPE_FIELDS)}"
            )
        if values.get("partial_rotary_factor") == 1:
            del values["partial_rotary_factor"]  # transformers 5 moves it here
        wanted = ROPE_FIELDS[kind]
        if missing := [name for name in wanted if name not in values]:
            raise ConfigError(f"config.json: {where} of type {kind!r} lacks {missing}")
        if unknown := sorted(set(values) - set(wanted)):
            raise ConfigError(f"config.json: {where} of type {kind!r} has keys that no rule claims: {unknown}")
        types = {f.name: int if f.type is int else float for f in dataclasses.fields(Rope)}
        base = next((x for x in (inner, theta) if x is not None), self.base)
        fields = {name: typed(f"{where}.{name}", values[name], types[name]) for name in wanted}
        return Rope(kind=kind, base=typed("rope_theta", base, float), **fields)

    def write(self, spec: ModelSpec, out: Config) -> None:
        rope = spec.rope
        scaling = {"rope_type": rope.kind, **{name: getattr(rope, name) for name in ROPE_FIELDS[rope.kind]}}
        out["rope_theta"] = rope.base
        # transformers before 4.43 takes `type` and `factor` and nothing else; later ones read that, too.
        out["rope_scaling"] = {"default": None, "linear": {"type": "linear", "factor": rope.factor}}.get(
            rope.kind, scaling
        )
        out["rope_parameters"] = {"rope_theta": rope.base, **scaling}


BASE_KEYS = Kept((
    "_name_or_path", "_attn_implementation_autoset", "architectures", "model_type", "transformers_version",
    "torch_dtype", "dtype", "use_cache", "initializer_range", "attention_dropout", "pretraining_tp",
    "max_sequence_length", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id",
    "decoder_start_token_id", "return_dict", "output_hidden_states", "output_attentions", "torchscript",
    "chunk_size_feed_forward", "is_encoder_decoder", "is_decoder", "id2label", "label2id", "problem_type",
    "tokenizer_class", "prefix", "begin_suppress_tokens", "suppress_tokens", "finetuning_task", "task_specific_params",
    "use_bfloat16", "pruned_heads", "do_sample", "temperature", "top_p", "top_k", "is_llama_config", "unsloth_fixed",
    "unsloth_version", "transformers.js_config", "_attn_implementation", "attn_implementation", "tf_legacy_loss",
    "tie_encoder_decoder", "cross_attention_hidden_size", "remove_invalid_values", "return_dict_in_generate",
    "output_scores", "num_return_sequences", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "early_stopping", "bad_words_ids", "typical_p", "num_beam_groups", "diversity_penalty", "forced_bos_token_id",
    "forced_eos_token_id", "exponential_decay_length_penalty", "max_length", "min_length", "num_beams",
    "repetition_penalty", "max_new_tokens", "generation_config", "_flash_attn_2_enabled", "gradient_checkpointing",
    "num_labels", "model_max_length", "keys_to_ignore_at_inference", "embd_pdrop", "resid_pdrop", "min_p",
    "renormalize_logits",
), emit={"attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True})  # fmt: skip
"""Keys of any Hugging Face config that say how it was made, trained or sampled from, not what it computes."""

NO = ("rope_interleaved", "add_cross_attention", "use_sliding_window", "load_in_8bit", "load_in_4bit")
"""Keys of other families and of loaders that some configs carry: harmless as long as they say no."""
ABSENT = (
    *(Constant(name, False, emit=False) for name in NO),
    *(Constant(name, None, also=({},), emit=False) for name in ("auto_map", "quantization_config")),
)
