"""Megatron-Bridge's model section of `run_config.yaml`: one table, read to open a checkpoint and written to make one.

The tensors are megatron-core's own (`mcore.py`). Values of `_target_` are names: compared, never imported.
Sources: Megatron-Bridge 0.3.1 and 0.6.2, `gpt_provider.py` and `mistral_bridge.py`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from mconv.convert.dialects import arguments
from mconv.convert.dialects.arguments import shown
from mconv.convert.dialects.mcore import bias_spec
from mconv.errors import ConfigError, refuse
from mconv.spec import UNNAMED, ModelSpec, Rope

Values = dict[str, Any]
MODELS = "megatron.bridge.models."
PROVIDERS = {MODELS + "gpt_provider.": UNNAMED, MODELS + "llama.": "llama", MODELS + "mistral.": "mistral"}
"""Where the classes come from that compute what the table says -> the family that they are for."""
LAYERS = tuple(MODELS + f"gpt_provider.{name}" for name in (
    "default_layer_spec", "local_layer_spec", "transformer_engine_layer_spec", "transformer_engine_full_layer_spec",
))  # fmt: skip
OLD_MARK = "async_tensor_model_parallel_allreduce"
"""megatron-core dropped it in 0.17, and Megatron-Bridge up to 0.3.1 asks for one below: who writes it has the fault of
`window`."""


# ---- the table -------------------------------------------------------------------------------------------------------
@runtime_checkable
class Key(Protocol):
    """One claim on the model's section: `read` takes its keys out of what is left, `write` puts them back."""

    def read(self, left: Values) -> Values: ...

    def write(self, spec: ModelSpec, out: Values) -> None: ...


def typed(name: str, value: Any, kind: type) -> Any:
    """`value` as `kind`, where a whole number may stand for a float."""
    if kind is float and type(value) is int and abs(value) < 1 << 64:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"model.{name} is {shown(name, value)}; {kind.__name__} was expected")
    return value


@dataclass(frozen=True, slots=True)
class Field:
    """A key that is a field of the spec. `instead`: the field that null stands for."""

    key: str
    spec: str
    type: type
    instead: str | None = None

    def read(self, left: Values) -> Values:
        value = left.pop(self.key, None)
        if value is None and self.instead:
            value = left.get(self.instead)
        return {self.spec: typed(self.key, value, self.type)}

    def write(self, spec: ModelSpec, out: Values) -> None:
        out[self.key] = getattr(spec, self.spec)


@dataclass(frozen=True, slots=True)
class Width:
    """Channels of a head; null where they are the hidden size over the heads."""

    def read(self, left: Values) -> Values:
        hidden, heads, value = left.get("hidden_size"), left.get("num_attention_heads"), left.pop("kv_channels", None)
        if value is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
            value = hidden // heads
        return {"kv_channels": typed("kv_channels", value, int)}

    def write(self, spec: ModelSpec, out: Values) -> None:
        out["kv_channels"] = spec.kv_channels


@dataclass(frozen=True, slots=True)
class Biases:
    """megatron-core's two switches: every linear, or QKV alone."""

    def read(self, left: Values) -> Values:
        every = typed("add_bias_linear", left.pop("add_bias_linear", True), bool)
        qkv = typed("add_qkv_bias", left.pop("add_qkv_bias", False), bool)
        return {"qkv_bias": every or qkv, "proj_bias": every, "mlp_bias": every}

    def write(self, spec: ModelSpec, out: Values) -> None:
        biased = bias_spec(spec)
        out |= {"add_bias_linear": biased.mlp_bias, "add_qkv_bias": biased.qkv_bias}


@dataclass(frozen=True, slots=True)
class Ropes:
    """Rotary settings. Of llama3 scaling only the factor is written: 1, 4 and 8192 are built in."""

    def read(self, left: Values) -> Values:
        base = typed("rotary_base", left.pop("rotary_base", 10000), float)
        stretch = left.pop("seq_len_interpolation_factor", None)
        scaled = typed("rope_scaling", left.pop("rope_scaling", False), bool)
        factor = typed("rope_scaling_factor", left.pop("rope_scaling_factor", 1.0), float)
        if scaled and stretch not in (None, 1):
            raise ConfigError("model has rope_scaling and seq_len_interpolation_factor at once")
        if scaled:
            return {"rope": Rope(kind="llama3", base=base, factor=factor)}
        if stretch is not None:
            return {"rope": Rope(kind="linear", base=base, factor=typed("seq_len_interpolation_factor", stretch, float))}
        return {"rope": Rope(base=base)}

    def write(self, spec: ModelSpec, out: Values) -> None:
        rope, scaled = spec.rope, spec.rope.kind == "llama3"
        out |= {"rotary_base": rope.base, "rope_scaling": scaled, "rope_scaling_factor": rope.factor if scaled else 1.0}
        out["seq_len_interpolation_factor"] = rope.factor if rope.kind == "linear" else None


@dataclass(frozen=True, slots=True)
class Window:
    """(keys before, 0), where the spec counts the query's own too."""

    def read(self, left: Values) -> Values:
        pair = left.pop("window_size", None)
        if pair in (None, [-1, 0], [-1, -1]):
            return {"sliding_window": None}
        if not (isinstance(pair, (list, tuple)) and [type(n) for n in pair] == [int, int] and pair[0] >= 0 == pair[1]):
            raise ConfigError(f"model.window_size is {shown('window_size', pair)}; [keys before, 0] was expected")
        return {"sliding_window": pair[0] + 1}

    def write(self, spec: ModelSpec, out: Values) -> None:
        out["window_size"] = [spec.sliding_window - 1, 0] if spec.sliding_window else None


@dataclass(frozen=True, slots=True)
class Constant:
    """A key that has one meaning we compute; the first of `values` is written, if it is not of a later version."""

    key: str
    values: tuple[Any, ...]
    emit: bool = True

    def read(self, left: Values) -> Values:
        value = left.pop(self.key, self.values[0])
        if not arguments.one_of(value, self.values):
            raise ConfigError(f"model.{self.key} is {shown(self.key, value)}; mconv supports only {self.values[0]!r}")
        return {}

    def write(self, spec: ModelSpec, out: Values) -> None:
        if self.emit:
            out[self.key] = self.values[0]


def name_of(target: str) -> Values:
    """How the file names a function without calling it."""
    return {"_target_": target, "_call_": False}


FALSE = (
    "rotary_interleaved", "layernorm_zero_centered_gamma", "qk_l2_norm", "multi_latent_attention",
    "apply_residual_connection_post_layernorm", "apply_query_key_layer_scaling", "mtp_enabled", "attention_output_gate",
    "qk_clip", "heterogeneous_block_specs", "is_hybrid_model", "restore_modelopt_state",
    "use_fused_weighted_squared_relu",
)  # fmt: skip
NULL = (
    "rotary_scaling_factor", "num_moe_experts", "experimental_attention_variant", "linear_attention_freq",
    "softmax_scale", "activation_func_clamp_value", "window_attn_skip_freq", "no_rope_freq", "mrope_section",
    "mtp_num_layers", "quant_recipe",
)  # fmt: skip
TABLE: tuple[Key, ...] = (
    Width(),
    Field("num_query_groups",        "num_query_groups", int, "num_attention_heads"),
    Field("num_layers",              "num_layers", int),
    Field("hidden_size",             "hidden_size", int),
    Field("ffn_hidden_size",         "ffn_hidden_size", int),
    Field("num_attention_heads",     "num_attention_heads", int),
    Field("seq_length",              "max_position_embeddings", int),
    Field("layernorm_epsilon",       "norm_epsilon", float),
    Field("share_embeddings_and_output_weights", "tied_embeddings", bool),
    Field("qk_layernorm",            "qk_norm", bool),
    Biases(), Ropes(), Window(),
    Constant("normalization",          ("RMSNorm",)),
    Constant("gated_linear_unit",      (True,)),
    Constant("activation_func",        (name_of("torch.nn.functional.silu"),)),
    Constant("position_embedding_type", ("rope",)),
    Constant("rotary_percent",         (1.0,)),
    Constant("glu_linear_offset",      (0.0,)),
    Constant("softmax_type",           ("vanilla",)),
    Constant("transformer_layer_spec", tuple(map(name_of, LAYERS))),
    Constant("use_mup",                (False,), emit=False),
    *(Constant(name, (False,)) for name in FALSE),
    *(Constant(name, (None,)) for name in NULL),
)  # fmt: skip


ALWAYS = (
    "normalization", "gated_linear_unit", "activation_func", "position_embedding_type", "add_bias_linear", "add_qkv_bias",
    "rotary_base", "rope_scaling", "rope_scaling_factor", "seq_len_interpolation_factor", "window_size", "kv_channels",
    "num_query_groups", "qk_layernorm",
)  # fmt: skip
"""Keys that Megatron-Bridge always writes and whose defaults differ from one provider's class to another's."""


# ---- the section as a whole ------------------------------------------------------------------------------------------
def read(
    model: Values, *, ignore: frozenset[str] = frozenset(), told: Mapping[str, Any] = arguments.NONE_TOLD
) -> tuple[Values, Values]:
    """Return the fields of the spec, and the keys that no row claims and that pass because `ignore` or `told` names them.

    Raises ConfigError, by name, on a key that changes the function and on one that no row claims.
    """
    fields: Values = {}
    left = dict(model)
    wrong = [
        f"model.{key} is not there, and what stands for it is its provider's own" for key in ALWAYS if key not in model
    ]
    for key in TABLE:
        try:
            fields |= key.read(left)
        except ConfigError as error:
            wrong.append(str(error))
    if wrong and (also := arguments.unheeded(ignore & (model.keys() - left.keys()))):
        wrong.append(also.removeprefix("; "))
    refuse(wrong, doing="a model that mconv does not support", kind=ConfigError)
    claimed = arguments.BRIDGE.fields.union(model.keys() - left.keys())
    table = dataclasses.replace(arguments.BRIDGE, fields=claimed)
    return fields, arguments.check(model, table, ignore=ignore, told=told)


def check_sections(config: Values, *, ignore: frozenset[str], told: Mapping[str, Any]) -> Values:
    """Return the sections beside the model's that nobody knows and that may pass. Raises ConfigError on any other."""
    if (peft := config.get("peft")) is not None:
        kind = peft.get("_target_") if isinstance(peft, dict) else peft
        raise ConfigError(
            f"peft is {shown('peft', kind)}: the checkpoint is of a run that trained an adapter, and its tensors "
            "are the adapter's or have it beside them; merge it with Megatron-Bridge and convert what that makes"
        )
    return arguments.check(config, arguments.BRIDGE_SECTIONS, ignore=ignore, told=told)


def write(spec: ModelSpec) -> Values:
    """The same table, backwards."""
    model: Values = {"_target_": provider(spec)}
    for key in TABLE:
        key.write(spec, model)
    return model


def family_of(model: Values) -> str:
    target = model.get("_target_")
    for prefix, family in PROVIDERS.items():
        if isinstance(target, str) and target.startswith(prefix):
            return family
    raise ConfigError(
        f"model._target_ is {shown('_target_', target)}; mconv knows the providers of {', '.join(PROVIDERS)}"
    )


def provider(spec: ModelSpec) -> str:
    if spec.family == "mistral" or spec.sliding_window:
        return MODELS + "mistral.mistral_provider.MistralModelProvider"
    return MODELS + "gpt_provider.GPTModelProvider"


BUILT_IN = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
"""Of llama3 scaling: fixed in megatron-core, and so in no file of Bridge."""


def refusals(spec: ModelSpec) -> list[str]:
    """What a model has that a `run_config.yaml` cannot say."""
    rope, plain = spec.rope, Rope()
    checks = {
        "a MLP that is not SwiGLU": spec.activation != "swiglu",
        "LayerNorm": spec.norm != "rms",
        "ALiBi": spec.position == "alibi",
        "learned positions": spec.position == "learned",
        "attention and MLP side by side": spec.parallel_attention,
        "llama3 rope scaling with other than low 1, high 4, original length 8192": rope.kind == "llama3"
        and any(getattr(rope, name) != getattr(plain, name) for name in BUILT_IN),
    }
    return [f"Megatron-Bridge cannot express {what}" for what, has in checks.items() if has]
