"""epfLLM's Megatron-LLM (ended 2024): legacy files whose rows are ordered as nowhere else.

GLU halves are [up; gate]; the rows of each query and key head are interleaved (0, h/2, 1, h/2 + 1, ...), as Meta has
them; values are not. The head is a bare tensor, `lm_head`. Shapes are those of NVIDIA's legacy files, so only names and
args tell the two apart, and only logits would show a mix-up.

What its args say cannot be taken on trust. The importer's own files state the model. A file that was resharded or
trained holds the flags of that process, whatever the model is: resharding resets epsilon, rope base and rope factor.
"""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from mconv.convert.dialects import flags_megatron_llm
from mconv.convert.dialects.arguments import MEGATRON_LLM, shown
from mconv.convert.dialects.dialect import Dialect
from mconv.convert.dialects.nvidia_legacy import ATTENTION, LAYER, MLP, MODEL, spelled
from mconv.convert.formats.dtype import BY_NAME
from mconv.convert.formats.tensors import Located
from mconv.errors import AmbiguousCheckpoint, ConfigError
from mconv.shard.layout import Layout
from mconv.spec import UNNAMED, ModelSpec, Rope

NAMES: dict[str, tuple[str, ...]] = {
    # logical          as training and resharding write it; the importer says `transformer` and `attention`
    "embed":           (MODEL + "embedding.word_embeddings.{leaf}",),
    "layer.attn_norm": spelled(LAYER + "input_layernorm.{leaf}"),
    "layer.qkv":       spelled(ATTENTION + "query_key_value.{leaf}"),
    "layer.attn_out":  spelled(ATTENTION + "dense.{leaf}"),
    "layer.mlp_norm":  spelled(LAYER + "post_attention_layernorm.{leaf}"),
    "layer.mlp_in":    spelled(MLP + "dense_h_to_4h.{leaf}"),
    "layer.mlp_out":   spelled(MLP + "dense_4h_to_h.{leaf}"),
    "final_norm":      spelled("final_layernorm.{leaf}"),
    "head":            (MODEL + "lm_head",),
    "tied":            ("word_embeddings_for_head.{leaf}",),
}  # fmt: skip
PATTERNS = {"layer.qkv": "(g (s[:-1] h~ + s[-1] h)) d", "layer.mlp_in": "(p[1] f + p[0] f) d"}
PARALLEL = NAMES | {"layer.mlp_norm": spelled(LAYER + "mlp_layernorm.{leaf}")}
"""With attention and MLP side by side, the second norm is named after what it feeds."""
IMPORTED = MODEL + "transformer."
"""Only the importer writes this, at tp 1 and with the table's rows as they were: its args are the model's."""

TRUE_OF: dict[str, dict[str, float]] = {
    "llama": {"layernorm_epsilon": 1e-6, "rope_theta": 1e4}, "llama2": {"layernorm_epsilon": 1e-5, "rope_theta": 1e4},
    "codellama": {"layernorm_epsilon": 1e-5, "rope_theta": 1e6}, "falcon": {"layernorm_epsilon": 1e-5, "rope_theta": 1e4},
    "mistral": {"layernorm_epsilon": 1e-5, "rope_theta": 1e4},
}  # fmt: skip
"""What the models of each `model_name` have: args that say otherwise are flags that somebody forgot."""
ROTARY = ("rotary", 1)
"""The position embedding, as the importer spells it and as the value of its enum."""


# ---- args ------------------------------------------------------------------------------------------------------------
def args_of(spec: ModelSpec, layout: Layout, *, dtype: str, iteration: int = 0) -> Namespace:
    """The args that the importer writes, and those that a resharded file adds."""
    gated = spec.activation == "swiglu"
    virtual = spec.num_layers // (layout.pp * layout.vpp) if layout.vpp > 1 else None
    values = {
        "num_layers": spec.num_layers, "encoder_num_layers": spec.num_layers, "hidden_size": spec.hidden_size,
        "ffn_hidden_size": spec.ffn_hidden_size, "num_attention_heads": spec.num_attention_heads,
        "num_attention_heads_kv": spec.num_query_groups, "kv_channels": spec.kv_channels,
        "max_position_embeddings": spec.max_position_embeddings, "seq_length": spec.max_position_embeddings,
        "layernorm_epsilon": spec.norm_epsilon, "rope_theta": spec.rope.base, "rope_scaling_factor": spec.rope.factor,
        "sliding_window_size": spec.sliding_window - 1 if spec.sliding_window else None,  # its attention sees one more
        "use_rms_norm": spec.norm == "rms", "glu_activation": "swiglu" if gated else None, "use_bias": spec.mlp_bias,
        "parallel_attn": spec.parallel_attention, "position_embedding_type": "rotary",
        "parallel_layernorm": spec.parallel_attention and not spec.shared_norm,
        "tie_embed_logits": spec.tied_embeddings, "padded_vocab_size": layout.padded_vocab,
        "make_vocab_size_divisible_by": 128, "tensor_model_parallel_size": layout.tp,
        "pipeline_model_parallel_size": layout.pp,
        "virtual_pipeline_model_parallel_size": layout.vpp if layout.vpp > 1 else None,
        "num_layers_per_virtual_pipeline_stage": virtual,
        "hidden_dropout": 0.0, "attention_dropout": 0.0, "lima_dropout": False, "use_post_ln": False,
        "use_flash_attn": True, "bias_gelu_fusion": False, "bias_dropout_fusion": False,
        "tokenizer_type": "SentencePieceTokenizer" if gated else "FalconTokenizer",
        "bf16": dtype == "bfloat16", "fp16": dtype == "float16", "params_dtype": BY_NAME[dtype],
        "iteration": iteration, "consumed_train_samples": 0, "consumed_valid_samples": 0,
        "true_vocab_size": spec.vocab_size,  # an arg of ours: theirs do not know it
    }  # fmt: skip
    return Namespace(**values)


def spec_of(
    args: Namespace,
    *,
    tensors: Mapping[str, Located] | None = None,
    vocab_size: int | None = None,
    settled: bool = False,
) -> ModelSpec:
    """The architecture. Raises ConfigError where args contradict each other or cannot be trusted."""
    tensors = tensors or {}
    values, imported = vars(args), any(IMPORTED in key for key in tensors)
    _check_function(values)
    if not imported and not settled:
        _check_trusted(values)
    heads, hidden = _int(values, "num_attention_heads"), _int(values, "hidden_size")
    gated, rms = values.get("glu_activation"), bool(values.get("use_rms_norm", False))
    parallel = bool(values.get("parallel_attn", False))
    biased = bool(values.get("use_bias", False))
    factor = _float(values, "rope_scaling_factor", 1.0)
    window = _window(values, imported=imported)
    return ModelSpec(
        family=UNNAMED,
        num_layers=_int(values, "num_layers"), hidden_size=hidden, num_attention_heads=heads,
        ffn_hidden_size=_int(values, "ffn_hidden_size", None if gated else 4 * hidden),
        num_query_groups=_int(values, "num_attention_heads_kv", heads),
        kv_channels=hidden // heads if heads > 0 else 0,
        max_position_embeddings=_int(values, "max_position_embeddings"),
        vocab_size=_true_vocab(values, tensors, imported=imported, given=vocab_size),
        norm_epsilon=_float(values, "layernorm_epsilon", 1e-5),
        rope=Rope(kind="linear" if factor != 1 else "default", base=_float(values, "rope_theta", 1e4),
                  factor=factor),
        sliding_window=window, norm="rms" if rms else "layer", activation="swiglu" if gated else "gelu",
        parallel_attention=parallel, shared_norm=parallel and not values.get("parallel_layernorm", False),
        tied_embeddings=bool(values.get("tie_embed_logits", not rms)),
        qkv_bias=biased, proj_bias=biased, mlp_bias=biased,
    )  # fmt: skip


def _check_function(values: dict[str, Any]) -> None:
    """Raise ConfigError where args together describe a function that no family has."""
    position = values.get("position_embedding_type")
    named = getattr(position, "args", (position,))  # an enum of theirs is a stand-in that kept its value
    wrong = []
    if not named or named[0] not in ROTARY:
        wrong.append(f"position_embedding_type is {shown('', named[0] if named else None)}")
    if values.get("glu_activation") not in (None, "swiglu"):
        wrong.append(f"glu_activation is {shown('', values['glu_activation'])}")
    if bool(values.get("use_rms_norm")) != bool(values.get("glu_activation")):
        wrong.append("use_rms_norm and glu_activation do not go together in any family that mconv supports")
    if values.get("bias_gelu_fusion") and values.get("use_bias") and not values.get("glu_activation"):
        wrong.append("bias_gelu_fusion is True, and its fused GELU is the tanh form, which no family has there")
    if wrong:
        raise ConfigError(f"the checkpoint's args describe a model that mconv does not support: {'; '.join(wrong)}")


def _check_trusted(values: dict[str, Any]) -> None:
    """Hold the args of a trained or resharded file against what its `model_name` has. Ours say the true vocabulary."""
    name = values.get("model_name")
    if "true_vocab_size" in values and name is None:
        return
    if name not in TRUE_OF:
        raise AmbiguousCheckpoint(
            f"the checkpoint's args have model_name {name!r}: they hold the flags of the process that wrote it, and "
            "nothing says whether these are the model's; give --config, the model's config.json"
        )
    wrong = [f"{k} {values.get(k)!r} (a {name} has {v:g})" for k, v in TRUE_OF[name].items() if values.get(k) != v]
    if wrong:
        raise AmbiguousCheckpoint(
            f"the checkpoint's args say {' and '.join(wrong)}: they hold the flags of the process that wrote it, which "
            "resharding resets; give --config, the model's config.json"
        )


def doubts(args: Namespace, tensors: Mapping[str, Located]) -> tuple[str, ...]:
    """Of a file that was resharded or trained: a scaling factor of 1 may be the model's, or resharding's default."""
    values = vars(args)
    ours, imported = "true_vocab_size" in values, any(IMPORTED in key for key in tensors)
    if ours or imported or values.get("rope_scaling_factor") not in (None, 1, 1.0):
        return ()
    return (
        "a resharded or trained Megatron-LLM file does not keep the rope scaling factor; none was assumed: wrong "
        "for a model with linear scaling: for such a one give --config, its config.json",
    )


def _window(values: dict[str, Any], *, imported: bool) -> int | None:
    """The number of visible keys. Its attention sees one more than the arg says; its importer copies Hugging Face's."""
    size = values.get("sliding_window_size")
    if size is None:
        return None
    as_imported = imported or values.get("model_name") == "mistral"  # that class takes 4096 only, as imported
    return _int(values, "sliding_window_size") + (not as_imported)


def _true_vocab(values: dict[str, Any], tensors: Mapping[str, Located], *, imported: bool, given: int | None) -> int:
    """The importer keeps the table's rows, whatever its label says. In other files nothing tells padding from tokens."""
    rows = _rows(tensors)
    known = values.get("true_vocab_size") or (rows if imported and rows else None)
    if known is None and given is None:
        raise AmbiguousCheckpoint(
            f"the checkpoint does not say its true vocabulary size (the tables of its ranks have {rows} rows, padding "
            "included); give --vocab-size, the number of tokens that the model was trained with"
        )
    if known is not None and given not in (None, known):
        raise ConfigError(f"the checkpoint has a vocabulary of {known}, not {given}")
    return int(known or 0) if given is None else given


def _rows(tensors: Mapping[str, Located]) -> int:
    """Rows of one rank's embedding."""
    name = NAMES["embed"][0].format(leaf="weight")
    return next((where.shape[0] for key, where in tensors.items() if key.endswith(name) and where.shape), 0)


def layout_of(args: Namespace, tensors: Mapping[str, Located] | None = None) -> Layout:
    """The layout. Rows are counted, because `padded_vocab_size` may be a constant of the importer, or absent."""
    values = vars(args)
    tp = _int(values, "tensor_model_parallel_size", 1)
    return Layout(
        tp=tp, pp=_int(values, "pipeline_model_parallel_size", 1), padded_vocab=tp * _rows(tensors or {}),
        vpp=_int(values, "virtual_pipeline_model_parallel_size", 1),
    )  # fmt: skip


def _int(values: dict[str, Any], name: str, default: int | None = None) -> int:
    value = values.get(name)
    value = default if value is None else value
    if type(value) is not int:
        raise ConfigError(f"the checkpoint's args have {name} = {shown(name, value)}; a whole number was expected")
    return value


def _float(values: dict[str, Any], name: str, default: float) -> float:
    """Return one of the args that are numbers; only one that is not there has its default."""
    value = values.get(name)
    return float(default if value is None else value)


def refusals(spec: ModelSpec, layout: Layout) -> list[str]:
    """What this model has not."""
    biases = {spec.qkv_bias, spec.proj_bias, spec.mlp_bias}
    has = {
        f"head width of its own ({spec.kv_channels})": spec.kv_channels * spec.num_attention_heads != spec.hidden_size,
        "llama3 rope scaling": spec.rope.kind == "llama3",
        "ALiBi": spec.position == "alibi",
        "norms of query and key heads": spec.qk_norm,
        "learned positions that mconv can write": spec.position == "learned",
        "GELU in the tanh form": spec.activation == "gelu_tanh",
        "bias on some linears only": len(biases) > 1,
        f"tp {layout.tp} for {spec.num_query_groups} query groups": bool(spec.num_query_groups % layout.tp),
    }
    return [f"Megatron-LLM has no {name}" for name, there in has.items() if there]


DIALECT = Dialect(
    name="megatron-llm",
    program=flags_megatron_llm.PROGRAM,
    flags=flags_megatron_llm.flags,
    arguments=MEGATRON_LLM,
    names=lambda spec: PARALLEL if spec.parallel_attention else NAMES,
    spec_of=spec_of,
    args_of=args_of,
    layout_of=layout_of,
    patterns=PATTERNS,
    refusals=refusals,
    tied_name="tied",
    nests=("language_model", "language_model.embedding", "language_model.embedding.word_embeddings",
           "language_model.encoder", "word_embeddings_for_head"),
    least_version=2.0,
    untrusted_args=True,
    doubts=doubts,
    marks=("language_model.lm_head", "mlp_layernorm.weight"),
    own_args=("glu_activation", "use_rms_norm", "num_attention_heads_kv", "tie_embed_logits", "sliding_window_size",
              "rope_theta"),
)  # fmt: skip
