"""Megatron-Bridge's model section of `run_config.yaml`: one table, read to open a checkpoint and written to make one.

The tensors are megatron-core's own (`mcore.py`). Values of `_target_` are names: compared, never imported.
Sources: Megatron-Bridge 0.3.1 and 0.6.2, `gpt_provider.py` and `mistral_bridge.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mconv.convert.dialects import arguments
from mconv.convert.dialects.keys import LinearBiases, Ropes, Window, is_built_in
from mconv.convert.spelling.claim import ARG, claim, written
from mconv.convert.spelling.keys import Config, Constant, Field, Heads, Key, Left
from mconv.convert.spelling.values import shown
from mconv.errors import ConfigError, refuse
from mconv.spec import UNNAMED, ModelSpec

MODELS = "megatron.bridge.models."
PROVIDERS = {MODELS + "gpt_provider.": UNNAMED, MODELS + "llama.": "llama", MODELS + "mistral.": "mistral"}
"""Providers of models that the table describes -> the family that they are for."""
OLD_MARK = "async_tensor_model_parallel_allreduce"
"""megatron-core dropped it in 0.17, and Megatron-Bridge up to 0.3.1 asks for one below: who writes it has the fault of
`window`."""


def name_of(target: str) -> Config:
    """Return a function's name as the file has it, without a call."""
    return {"_target_": target, "_call_": False}


LAYERS = tuple(name_of(MODELS + f"gpt_provider.{name}") for name in (
    "default_layer_spec", "local_layer_spec", "transformer_engine_layer_spec", "transformer_engine_full_layer_spec",
))  # fmt: skip
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
    Heads(names=("hidden_size", "num_attention_heads", "num_query_groups", "kv_channels")),
    #     key                        field of the spec
    Field("num_layers",              "num_layers", int),
    Field("ffn_hidden_size",         "ffn_hidden_size", int),
    Field("seq_length",              "max_position_embeddings", int),
    Field("layernorm_epsilon",       "norm_epsilon", float),
    Field("share_embeddings_and_output_weights", "tied_embeddings", bool),
    Field("qk_layernorm",            "qk_norm", bool),
    LinearBiases(),
    Window("window_size", list),
    Ropes(stretch="seq_len_interpolation_factor", scaled="rope_scaling", unscaled=1.0),
    Constant("normalization",        "RMSNorm"),
    Constant("gated_linear_unit",    True),
    Constant("activation_func",      name_of("torch.nn.functional.silu")),
    Constant("position_embedding_type", "rope"),
    Constant("rotary_percent",       1.0),
    Constant("glu_linear_offset",    0.0),
    Constant("softmax_type",         "vanilla"),
    Constant("transformer_layer_spec", LAYERS[0], also=LAYERS[1:]),
    Constant("use_mup",              False, emit=False),  # of a later version
    *(Constant(name, False) for name in FALSE),
    *(Constant(name, None) for name in NULL),
)  # fmt: skip


ALWAYS = (
    "normalization", "gated_linear_unit", "activation_func", "position_embedding_type", "add_bias_linear", "add_qkv_bias",
    "rotary_base", "rope_scaling", "rope_scaling_factor", "seq_len_interpolation_factor", "window_size", "kv_channels",
    "num_query_groups", "qk_layernorm",
)  # fmt: skip
"""Keys that Megatron-Bridge always writes and whose defaults differ from one provider's class to another's."""


# ---- the section as a whole ------------------------------------------------------------------------------------------
def left_of(model: Config) -> Left:
    """Return the model's section as keys that no row has taken yet."""
    return Left(model, prefix="model.")


def read(
    model: Config, *, ignore: frozenset[str] = frozenset(), recorded: Mapping[str, Any] = arguments.NONE_RECORDED
) -> tuple[Config, Config]:
    """Return the fields of the spec, and the keys that no row claims and that `ignore` or `recorded` lets pass.

    Raises ConfigError, by name, on a key that changes the function and on one that no row claims.
    """
    missing = [name for name in ALWAYS if name not in model]
    refuse([f"model.{name} is not there, and what stands for it is its provider's own" for name in missing],
           doing="keys that Megatron-Bridge always writes", kind=ConfigError)  # fmt: skip
    left = left_of(model)
    fields = claim(TABLE, left, flag=ARG, ignore=ignore)
    table = dataclasses.replace(arguments.BRIDGE, fields=arguments.BRIDGE.fields.union(model.keys() - left.keys()))
    return fields, arguments.check(model, table, ignore=ignore, recorded=recorded)


def check_sections(config: Config, *, ignore: frozenset[str], recorded: Mapping[str, Any]) -> Config:
    """Return the sections beside the model's that nobody knows and that may pass. Raises ConfigError on any other."""
    if (peft := config.get("peft")) is not None:
        kind = peft.get("_target_") if isinstance(peft, dict) else peft
        raise ConfigError(
            f"peft is {shown('peft', kind)}: the checkpoint is of a run that trained an adapter, and its tensors "
            "are the adapter's or have it beside them; merge it with Megatron-Bridge and convert what that makes"
        )
    return arguments.check(config, arguments.BRIDGE_SECTIONS, ignore=ignore, recorded=recorded)


def write(spec: ModelSpec) -> Config:
    """Return the model's section: the same table, backwards."""
    return {"_target_": provider(spec)} | written(TABLE, spec)


def family_of(model: Config) -> str:
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


def refusals(spec: ModelSpec) -> list[str]:
    """Return what a model has that a `run_config.yaml` cannot express."""
    checks = {
        "a MLP that is not SwiGLU": spec.activation != "swiglu",
        "LayerNorm": spec.norm != "rms",
        "ALiBi": spec.position == "alibi",
        "learned positions": spec.position == "learned",
        "attention and MLP side by side": spec.parallel_attention,
        "llama3 rope scaling with other than low 1, high 4, original length 8192": not is_built_in(spec.rope),
    }
    return [f"Megatron-Bridge cannot express {what}" for what, has in checks.items() if has]
