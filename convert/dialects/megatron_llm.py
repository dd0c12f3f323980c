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
from mconv.convert.dialects.arguments import MEGATRON_LLM
from mconv.convert.dialects.arguments.megatron_llm import LAYOUT, SPEC
from mconv.convert.dialects.dialect import Dialect
from mconv.convert.dialects.keys import chunk_layers, left_of, of_dtype
from mconv.convert.dialects.nvidia_legacy import ATTENTION, LAYER, MLP, MODEL, spelled
from mconv.convert.formats.tensors import Located
from mconv.convert.spelling.claim import ARG, claim, written
from mconv.convert.spelling.keys import take
from mconv.errors import AmbiguousCheckpoint, ConfigError
from mconv.shard.layout import Layout
from mconv.spec import UNNAMED, ModelSpec

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
"""Args that all models of a `model_name` share: a checkpoint that differs holds the flags of another process."""


# ---- args ------------------------------------------------------------------------------------------------------------
RUN: dict[str, Any] = {
    "make_vocab_size_divisible_by": 128, "hidden_dropout": 0.0, "attention_dropout": 0.0, "lima_dropout": False,
    "use_post_ln": False, "use_flash_attn": True, "bias_gelu_fusion": False, "bias_dropout_fusion": False,
    "consumed_train_samples": 0, "consumed_valid_samples": 0,
}  # fmt: skip
"""Args that are the same in every checkpoint of ours."""


def args_of(spec: ModelSpec, layout: Layout, *, dtype: str, iteration: int = 0) -> Namespace:
    """Return the args that the importer writes, and those that a resharded file adds."""
    tokenizer = "SentencePieceTokenizer" if spec.activation == "swiglu" else "FalconTokenizer"
    return Namespace(
        **written(SPEC, spec), **written(LAYOUT, layout), **of_dtype(dtype), **RUN,
        num_layers_per_virtual_pipeline_stage=chunk_layers(spec, layout), tokenizer_type=tokenizer, iteration=iteration,
    )  # fmt: skip


def spec_of(
    args: Namespace,
    *,
    tensors: Mapping[str, Located] | None = None,
    vocab_size: int | None = None,
    settled: bool = False,
) -> ModelSpec:
    """Return the architecture. Raises ConfigError where args contradict each other or cannot be trusted."""
    tensors = tensors or {}
    left, imported = left_of(args), any(IMPORTED in key for key in tensors)
    fields = claim(SPEC, left, flag=ARG)
    name, fused = take(left, "model_name", str, None), take(left, "bias_gelu_fusion", bool, False)
    _check_function(fields, fused=fused)
    if not imported and not settled:
        _check_trusted(vars(args), name)
    if fields["sliding_window"] and (imported or name == "mistral"):
        fields["sliding_window"] -= 1  # its importer copies Hugging Face's, and that class takes 4096 only, as imported
    known = fields["vocab_size"] or (_rows(tensors) if imported else None)
    fields["vocab_size"] = _true_vocab(known or None, _rows(tensors), given=vocab_size)
    return ModelSpec(family=UNNAMED, **fields)


def _check_function(fields: dict[str, Any], *, fused: bool) -> None:
    """Raise ConfigError where args together describe a function that no family has."""
    gated = fields["activation"] == "swiglu"
    wrong = []
    if (fields["norm"] == "rms") != gated:
        wrong.append("use_rms_norm and glu_activation do not go together in any family that mconv supports")
    if fused and fields["mlp_bias"] and not gated:
        wrong.append("bias_gelu_fusion is True, and its fused GELU is the tanh form, which no family has there")
    if wrong:
        raise ConfigError(f"the checkpoint's args describe a model that mconv does not support: {'; '.join(wrong)}")


def _check_trusted(values: dict[str, Any], name: str | None) -> None:
    """Hold the args of a trained or resharded file against what its `model_name` has. Ours say the true vocabulary."""
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


def assumptions(args: Namespace, tensors: Mapping[str, Located]) -> tuple[str, ...]:
    """Return a note for a resharded or trained file: its scaling factor of 1 may be resharding's default."""
    values = vars(args)
    ours, imported = "true_vocab_size" in values, any(IMPORTED in key for key in tensors)
    if ours or imported or values.get("rope_scaling_factor") not in (None, 1, 1.0):
        return ()
    return (
        "a resharded or trained Megatron-LLM file does not keep the rope scaling factor; none was assumed; "
        "if the model has linear scaling, give --config with its config.json",
    )


def _true_vocab(known: int | None, rows: int, *, given: int | None) -> int:
    """Return the true vocabulary: in files that neither we nor the importer made, nothing tells padding from tokens."""
    if known is None and given is None:
        raise AmbiguousCheckpoint(
            f"the checkpoint does not say its true vocabulary size (the tables of its ranks have {rows} rows, padding "
            "included); give --vocab-size, the number of tokens that the model was trained with"
        )
    if known is not None and given not in (None, known):
        raise ConfigError(f"the checkpoint has a vocabulary of {known}, not {given}")
    return int(known or 0) if given is None else given


def _rows(tensors: Mapping[str, Located]) -> int:
    """Return the rows of one rank's embedding. (The importer keeps the table's, whatever its label says.)"""
    name = NAMES["embed"][0].format(leaf="weight")
    return next((where.shape[0] for key, where in tensors.items() if key.endswith(name) and where.shape), 0)


def layout_of(args: Namespace, tensors: Mapping[str, Located] | None = None) -> Layout:
    """Return the layout. Rows are counted, because `padded_vocab_size` may be a constant of the importer, or absent."""
    sizes = claim(LAYOUT, left_of(args), flag=ARG)
    return Layout(**sizes, padded_vocab=sizes["tp"] * _rows(tensors or {}))


def refusals(spec: ModelSpec, layout: Layout) -> list[str]:
    """Return what a model has that Megatron-LLM cannot compute."""
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
    assumptions=assumptions,
    distinguishing_names=("language_model.lm_head", "mlp_layernorm.weight"),
    own_args=("glu_activation", "use_rms_norm", "num_attention_heads_kv", "tie_embed_logits", "sliding_window_size",
              "rope_theta"),
)  # fmt: skip
