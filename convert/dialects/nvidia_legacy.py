"""NVIDIA's Megatron-LM before megatron-core: `language_model.*`, deleted there in 2026.

Rows are ordered as megatron-core's: GLU halves [gate; up], rotary rows half-split. Its args are the same, too. Two
generations of names: norms were `input_layernorm` and the like, later `input_norm`; `transformer` became `encoder`.
Checkpoint versions below 2 have other QKV rows and are refused.
"""

from argparse import Namespace

from mconv.convert.dialects import flags_megatron, mcore
from mconv.convert.dialects.arguments import MEGATRON_LM
from mconv.convert.dialects.dialect import Dialect
from mconv.convert.dialects.keys import bias_spec
from mconv.shard.layout import Layout
from mconv.spec import ModelSpec

MODEL = "language_model."
STACKS = (MODEL + "encoder.", MODEL + "transformer.")
"""Prefixes of the layers: the one that is written, and the older one."""
NESTS = (
    "language_model", "language_model.embedding", "language_model.embedding.word_embeddings",
    "language_model.embedding.position_embeddings",
    "language_model.encoder", "language_model.output_layer", "word_embeddings_for_head",
)  # fmt: skip


def spelled(*names: str) -> tuple[str, ...]:
    """Names within the stack of layers, in every generation of what the stack and the attention were called."""
    inside = [stack + name for stack in STACKS for name in names]
    return (*inside, *(name.replace(".self_attention.", ".attention.") for name in inside if ".self_attention." in name))


LAYER = "layers.{l}."
ATTENTION, MLP = LAYER + "self_attention.", LAYER + "mlp."
NAMES: dict[str, tuple[str, ...]] = {
    # logical          as written since 2023                           as it once was
    "embed":           (MODEL + "embedding.word_embeddings.{leaf}",),
    "positions":       (MODEL + "embedding.position_embeddings.{leaf}",),
    "layer.attn_norm": spelled(LAYER + "input_norm.{leaf}",            LAYER + "input_layernorm.{leaf}"),
    "layer.qkv":       spelled(ATTENTION + "query_key_value.{leaf}"),
    "layer.attn_out":  spelled(ATTENTION + "dense.{leaf}"),
    "layer.mlp_norm":  spelled(LAYER + "post_attention_norm.{leaf}",   LAYER + "post_attention_layernorm.{leaf}"),
    "layer.mlp_in":    spelled(MLP + "dense_h_to_4h.{leaf}"),
    "layer.mlp_out":   spelled(MLP + "dense_4h_to_h.{leaf}"),
    "final_norm":      spelled("final_norm.{leaf}",                    "final_layernorm.{leaf}"),
    "head":            (MODEL + "output_layer.{leaf}",),
    "tied":            ("word_embeddings_for_head.{leaf}",),
}  # fmt: skip


def args_of(spec: ModelSpec, layout: Layout, *, dtype: str, iteration: int = 0) -> Namespace:
    """megatron-core's args, and the flag that asks for the older model."""
    args = mcore.args_of(spec, layout, dtype=dtype, iteration=iteration)
    args.use_legacy_models = True
    return args


def refusals(spec: ModelSpec, layout: Layout) -> list[str]:
    """Return what a model has that NVIDIA's legacy model cannot compute."""
    has = {
        "a sliding window": spec.sliding_window is not None,
        "llama3 rope scaling": spec.rope.kind == "llama3",
        "attention and MLP side by side": spec.parallel_attention,
        "ALiBi": spec.position == "alibi",
        "norms of query and key heads": spec.qk_norm,
    }
    lacks = [f"NVIDIA's legacy model has no {name}" for name, there in has.items() if there]
    return lacks + mcore.refusals(spec, layout)


DIALECT = Dialect(
    name="nvidia-legacy",
    program=flags_megatron.PROGRAM,
    flags=flags_megatron.legacy,
    arguments=MEGATRON_LM,
    names=lambda spec: NAMES,
    spec_of=mcore.spec_of,
    args_of=args_of,
    layout_of=mcore.layout_of,
    stored_spec=bias_spec,
    refusals=refusals,
    tied_name="tied",
    nests=NESTS,
    least_version=2.0,
    distinguishing_names=("output_layer.weight", "input_norm.weight", "post_attention_norm.weight", "final_norm.weight"),
    own_args=("swiglu", "normalization", "untie_embeddings_and_output_weights", "group_query_attention",
              "num_query_groups", "rotary_base", "use_legacy_models", "use_mcore_models"),
)  # fmt: skip
