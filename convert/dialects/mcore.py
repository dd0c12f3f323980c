"""megatron-core: what it calls each logical tensor, and which of Megatron-LM's args say which architecture.

GLU halves are [gate; up], rotary rows half-split: as the logical tensors are. Sources: `gpt_layer_specs.py` (names),
Megatron-LM core_v0.16.1 `checkpointing.py` (`load_args_from_checkpoint`).
"""

import dataclasses
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from mconv.convert.dialects import flags_megatron
from mconv.convert.dialects.arguments import MEGATRON_LM, shown
from mconv.convert.dialects.arguments.function import WRITTEN
from mconv.convert.dialects.dialect import Dialect
from mconv.convert.dialects.flags import whole
from mconv.convert.formats.dtype import BY_NAME
from mconv.convert.formats.tensors import Located
from mconv.convert.table import Family
from mconv.errors import ConfigError, Unsaid, refuse
from mconv.shard.layout import Layout
from mconv.shard.stages import EVEN, Uneven
from mconv.spec import UNNAMED, ModelSpec, Rope

LAYER = "decoder.layers.{l}."
ATTENTION = LAYER + "self_attention."
NAMES: dict[str, tuple[str, ...]] = {
    # logical          local spec (written in mp_rank)               fused-norm spec (Transformer Engine, torch_dist)
    "embed":           ("embedding.word_embeddings.{leaf}",),
    "positions":       ("embedding.position_embeddings.{leaf}",),
    "layer.attn_norm": (LAYER + "input_layernorm.{leaf}",            ATTENTION + "linear_qkv.layer_norm_{leaf}"),
    "layer.qkv":       (ATTENTION + "linear_qkv.{leaf}",),
    "layer.q_norm":    (ATTENTION + "q_layernorm.{leaf}",),
    "layer.k_norm":    (ATTENTION + "k_layernorm.{leaf}",),
    "layer.attn_out":  (ATTENTION + "linear_proj.{leaf}",),
    "layer.mlp_norm":  (LAYER + "pre_mlp_layernorm.{leaf}",          LAYER + "mlp.linear_fc1.layer_norm_{leaf}"),
    "layer.mlp_in":    (LAYER + "mlp.linear_fc1.{leaf}",),
    "layer.mlp_out":   (LAYER + "mlp.linear_fc2.{leaf}",),
    "final_norm":      ("decoder.final_layernorm.{leaf}",),
    "head":            ("output_layer.{leaf}",),
}  # fmt: skip
EXTRA_STATE = (
    "self_attention.linear_qkv", "self_attention.linear_proj", "self_attention.core_attention",
    "mlp.linear_fc1", "mlp.linear_fc2", "pre_mlp_layernorm",
)  # fmt: skip
"""Modules of a layer for which some megatron-core asks an (empty) extra state: the superset, which all accept."""

SAME = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels", "max_position_embeddings",
)  # fmt: skip
"""Args that are fields of the spec, by the same name."""

LLAMA3: dict[str, type] = {
    "low_freq_factor": float, "high_freq_factor": float, "original_max_position_embeddings": int,
}  # fmt: skip
"""Fields of llama3 scaling that megatron-core has built in (1, 4, 8192): written into our args, read back if there."""

UNEVEN: dict[str, tuple[str, type]] = {
    "first": ("decoder_first_pipeline_num_layers", int), "last": ("decoder_last_pipeline_num_layers", int),
    "embedding": ("account_for_embedding_in_pipeline_split", bool),
    "loss": ("account_for_loss_in_pipeline_split", bool),
}  # fmt: skip
"""Args with which stages hold different numbers of layers."""


POSITIONS = {"rope": "rope", "alibi": "alibi", "learned": "learned_absolute"}
NORMS = {"rms": "RMSNorm", "layer": "LayerNorm"}
EPSILON = ("layernorm_epsilon", "norm_epsilon")
"""The second is what Megatron-LM called it from 2023 to core 0.15."""


def check_stages(args: Namespace) -> None:
    """Refuse rank files of stages laid out by hand. (A distributed checkpoint does not depend on the stages.)"""
    if by_hand := getattr(args, "pipeline_model_parallel_layout", None):
        raise ConfigError(
            f"mconv does not read rank files whose args have a pipeline_model_parallel_layout ({str(by_hand)[:60]!r}); "
            "save it as torch_dist, which does not depend on it"
        )


def module_of(row: str) -> str:
    """Return what a row's module is called within its layer."""
    return NAMES[row][0].removeprefix(LAYER).removesuffix(".{leaf}")


def extra_state_keys(family: Family, spec: ModelSpec) -> list[str]:
    """The byte objects that a `torch_dist` checkpoint must list."""
    inner = [module_of(row.name) for branch in family.branches(spec) for row in branch.inner]
    n, modules = spec.num_layers, (*EXTRA_STATE, *inner)
    inside = [f"decoder.layers.{module}._extra_state/shard_{i}_{n}" for module in modules for i in range(n)]
    return [*inside, "decoder.final_layernorm._extra_state/shard_0_1"]


def bias_spec(spec: ModelSpec) -> ModelSpec:
    """The spec with the biases that megatron-core can have: on QKV alone, or on every linear.

    A bias that is added here is zero in a conversion, so the function is the same.
    """
    if spec.proj_bias or spec.mlp_bias:
        return dataclasses.replace(spec, qkv_bias=True, proj_bias=True, mlp_bias=True)
    return spec


def args_of(spec: ModelSpec, layout: Layout, *, dtype: str, iteration: int = 0) -> Namespace:
    """The args of a checkpoint, as Megatron-LM's `--use-checkpoint-args` and Megatron-Bridge read them."""
    biased = bias_spec(spec)
    rope = spec.rope
    # Megatron derives one of these from the other, but where stages are uneven only the second makes sense.
    chunk_layers = spec.num_layers // (layout.pp * layout.vpp) if layout.vpp > 1 and layout.uneven == EVEN else None
    values: dict[str, Any] = {name: getattr(spec, name) for name in SAME}
    values |= {name: allowed[0] for name, allowed in WRITTEN.items()}
    values |= {
        "group_query_attention": spec.num_query_groups != spec.num_attention_heads,
        "num_query_groups": spec.num_query_groups,
        "qk_layernorm": spec.qk_norm,
        "swiglu": spec.activation == "swiglu",
        "apply_query_key_layer_scaling": False,  # scores are divided by the layer's number and multiplied by it again
        "bias_gelu_fusion": spec.activation == "gelu_tanh",  # Megatron's fused GELU is the tanh form
        "normalization": NORMS[spec.norm],
        "window_size": (spec.sliding_window - 1, 0) if spec.sliding_window else None,
        "position_embedding_type": POSITIONS[spec.position],
        "seq_length": spec.max_position_embeddings,
        "encoder_seq_length": spec.max_position_embeddings,
        **dict.fromkeys(EPSILON, spec.norm_epsilon),
        "use_rotary_position_embeddings": spec.position != "learned",
        "rotary_base": whole(rope.base),
        "rotary_seq_len_interpolation_factor": whole(rope.factor) if rope.kind == "linear" else None,
        "use_rope_scaling": rope.kind == "llama3",
        "rope_scaling_factor": rope.factor if rope.kind == "llama3" else 8.0,
        # Megatron-LM knows no args for these:
        **{f"rope_{name}": getattr(rope, name) for name in LLAMA3},
        "parallel_attn": spec.parallel_attention, "parallel_layernorm": spec.parallel_attention and not spec.shared_norm,
        "untie_embeddings_and_output_weights": not spec.tied_embeddings,
        "add_bias_linear": biased.mlp_bias,
        "add_qkv_bias": biased.qkv_bias,
        "vocab_size": spec.vocab_size,
        "padded_vocab_size": layout.padded_vocab,
        "tensor_model_parallel_size": layout.tp,
        "pipeline_model_parallel_size": layout.pp,
        "virtual_pipeline_model_parallel_size": layout.vpp if layout.vpp > 1 else None,
        "num_layers_per_virtual_pipeline_stage": chunk_layers,
        "num_virtual_stages_per_pipeline_rank": layout.vpp if layout.vpp > 1 and layout.uneven != EVEN else None,
        "expert_model_parallel_size": 1, "context_parallel_size": 1, "data_parallel_size": 1,
        "world_size": layout.tp * layout.pp,
        **{arg: getattr(layout.uneven, name) for name, (arg, _) in UNEVEN.items()},
        "pipeline_model_parallel_layout": None,
        "attention_dropout": 0.0, "hidden_dropout": 0.0, "init_method_std": 0.02, "init_method_xavier_uniform": False,
        "bf16": dtype == "bfloat16", "fp16": dtype == "float16", "params_dtype": BY_NAME[dtype],
        "no_persist_layer_norm": False, "bias_swiglu_fusion": True, "overlap_p2p_comm": False,
        "fp8_param_gather": False,
        "config_logger_dir": "", "cp_comm_type": ["p2p"], "spec": None,
        "ckpt_format": "torch_dist",
        "no_save_optim": True, "no_save_rng": True, "iteration": iteration,
        "consumed_train_samples": 0, "consumed_valid_samples": 0, "skipped_train_samples": 0,
    }  # fmt: skip
    return Namespace(**values)


def spec_of(
    args: Namespace,
    *,
    tensors: Mapping[str, Located] | None = None,
    vocab_size: int | None = None,
    settled: bool = False,
) -> ModelSpec:
    """The architecture that a checkpoint's args describe. `vocab_size` is the true one where the args do not know it.

    Reads the fields alone: `arguments.check` has looked at every other arg before.
    """
    values = vars(args)
    biased = bool(values.get("add_bias_linear", False))
    grouped = values.get("group_query_attention", False)
    function = _function(values, biased=biased)
    return ModelSpec(
        family=UNNAMED,
        **function,
        **{name: _arg(values, name, int) for name in SAME},
        num_query_groups=_arg(values, "num_query_groups" if grouped else "num_attention_heads", int),
        vocab_size=_true_vocab(values, given=vocab_size),
        norm_epsilon=_epsilon(values),
        rope=_rope(values),
        qk_norm=bool(values.get("qk_layernorm", False)),
        tied_embeddings=not values.get("untie_embeddings_and_output_weights", False),
        qkv_bias=biased or bool(values.get("add_qkv_bias", False)),
        proj_bias=biased,
        mlp_bias=biased,
    )


def doubts(args: Namespace, tensors: Mapping[str, Located]) -> tuple[str, ...]:
    """Megatron-LM up to core 0.19.2 has a flag for llama3's factor, keeps it, and computes with 8 all the same."""
    values = vars(args)
    factor, ours = values.get("rope_scaling_factor", 8.0), "rope_low_freq_factor" in values
    if ours or not values.get("use_rope_scaling") or factor == 8:
        return ()
    return (
        f"its args have rope_scaling_factor {factor}, which was taken; but Megatron-LM up to core 0.19.2 computes with 8 "
        "whatever it says, so for a model that was trained there from scratch 8 is right: change it in the exported "
        "config.json",
    )


def _function(values: dict[str, Any], *, biased: bool) -> dict[str, Any]:
    """The fields of the spec that tell one kind of layer from another."""
    norm = {name: ours for ours, name in NORMS.items()}.get(values.get("normalization", "LayerNorm"))
    said = _position(values)
    position = {name: ours for ours, name in POSITIONS.items()}.get(said or "")
    swiglu, fused = bool(values.get("swiglu", False)), values.get("bias_gelu_fusion")
    wrong = [
        f"{name} is {shown(name, value)}"
        for name, value, fine in (
            ("normalization", values.get("normalization"), norm is not None),
            ("position_embedding_type", said, position is not None),
            ("bias_gelu_fusion", fused, swiglu or not biased or type(fused) is bool),
        )
        if not fine
    ]
    refuse(wrong, doing="the checkpoint's args describe a model that mconv does not support", kind=ConfigError)
    parallel = bool(values.get("parallel_attn", False))
    return {
        "norm": norm,
        "activation": "swiglu" if swiglu else "gelu_tanh" if biased and values["bias_gelu_fusion"] else "gelu",
        "position": position,
        "sliding_window": _window(values.get("window_size")),
        "parallel_attention": parallel,
        "shared_norm": parallel and not values.get("parallel_layernorm", False),
    }


def _position(values: dict[str, Any]) -> str | None:
    """Return the kind of positions; Megatron-LM of 23.04 and 23.06 says it by two switches."""
    if "position_embedding_type" in values:
        return values["position_embedding_type"]
    if values.get("use_rotary_position_embeddings", True):
        return "rope"
    return "learned_absolute" if values.get("add_position_embedding", True) else None


def _window(value: Any) -> int | None:
    """megatron-core's (keys before, keys after) as the number of keys that a query sees, itself included."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else value
    if pair in (None, (-1, 0), (-1, -1)):
        return None
    if not (isinstance(pair, tuple) and len(pair) == 2 and type(pair[0]) is int and pair[0] >= 0 and pair[1] == 0):
        raise ConfigError(
            f"the checkpoint's args have window_size = {shown('window_size', value)}; (keys before, 0) was expected"
        )
    return int(pair[0]) + 1


def layout_of(args: Namespace, tensors: Mapping[str, Located] | None = None) -> Layout:
    """The layout that a checkpoint's args describe."""
    values = vars(args)
    return Layout(
        tp=_arg(values, "tensor_model_parallel_size", int, 1),
        pp=_arg(values, "pipeline_model_parallel_size", int, 1),
        vpp=_arg(values, "virtual_pipeline_model_parallel_size", int, 1),
        padded_vocab=_arg(values, "padded_vocab_size", int),
        uneven=Uneven(**{name: _maybe(values, arg, kind) for name, (arg, kind) in UNEVEN.items()}),
    )


def _maybe(values: dict[str, Any], name: str, kind: type) -> Any:
    """One of the args that may be absent: a number or None, a flag or False."""
    return bool(values.get(name)) if kind is bool else values.get(name) and _arg(values, name, kind)


def _arg(values: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """One of the args, of the right kind. Raises ConfigError if it is missing or of another."""
    value = values.get(name)
    if value is None:
        value = default
    if kind is float and type(value) is int and abs(value) < 1 << 64:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"the checkpoint's args have {name} = {shown(name, value)}; {kind.__name__} was expected")
    return value


def _epsilon(values: dict[str, Any]) -> float:
    """Under either of its names; where both are there, they must agree."""
    found = {_arg(values, name, float) for name in EPSILON if values.get(name) is not None}
    if len(found) != 1:
        said = ", ".join(f"{name} = {values.get(name)!r}" for name in EPSILON)
        raise ConfigError(f"the checkpoint's args must say one norm epsilon, but have {said}")
    return found.pop()


def _rope(values: dict[str, Any]) -> Rope:
    base = _arg(values, "rotary_base", float, 10000.0)
    stretch = _arg(values, "rotary_seq_len_interpolation_factor", float, 1.0)
    if values.get("use_rope_scaling"):
        if stretch != 1:
            raise ConfigError("the args ask for llama3 rope scaling and linear interpolation at once")
        factor = _arg(values, "rope_scaling_factor", float, 8.0)
        told = {name: _arg(values, f"rope_{name}", kind, getattr(Rope(), name)) for name, kind in LLAMA3.items()}
        return Rope(kind="llama3", base=base, factor=factor, **told)
    return Rope(kind="linear", base=base, factor=stretch) if stretch != 1 else Rope(base=base)


def _true_vocab(values: dict[str, Any], *, given: int | None) -> int:
    """The true vocabulary. Padded rows hold arbitrary values in a trained checkpoint, so it cannot be found in them."""
    size = values.get("vocab_size")
    if size is None and given is None:
        raise Unsaid(
            f"the checkpoint does not say its true vocabulary size (padded: {values.get('padded_vocab_size')}); "
            "give --vocab-size, the number of tokens of its tokenizer"
        )
    if size is None:
        return int(given or 0)
    size = _arg(values, "vocab_size", int)
    # Megatron's NullTokenizer counts one more than it is told: it adds an end-of-document token, which may be unused.
    null = values.get("tokenizer_type") == "NullTokenizer"
    if given not in (None, size, size + null):
        raise ConfigError(f"the checkpoint's args say a vocabulary of {size}, not {given}")
    return given or size + null


def refusals(spec: ModelSpec, layout: Layout) -> list[str]:
    """What Megatron-LM has not."""
    if spec.activation == "gelu_tanh" and not bias_spec(spec).mlp_bias:
        return ["Megatron-LM has the tanh form of GELU only together with linear biases"]
    return []


DIALECT = Dialect(
    name="mcore",
    program=flags_megatron.PROGRAM,
    flags=flags_megatron.mcore,
    arguments=MEGATRON_LM,
    names=lambda spec: NAMES,
    spec_of=spec_of,
    args_of=args_of,
    layout_of=layout_of,
    stored_spec=bias_spec,
    refusals=refusals,
    doubts=doubts,
)
