"""megatron-core: what it calls each logical tensor, and the args of its checkpoints (`arguments/megatron_lm.py`).

GLU halves are [gate; up], rotary rows half-split: as the logical tensors are. Source: `gpt_layer_specs.py` (names).
"""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from mconv.convert.dialects import flags_megatron
from mconv.convert.dialects.arguments import MEGATRON_LM
from mconv.convert.dialects.arguments.function import WRITTEN
from mconv.convert.dialects.arguments.megatron_lm import LAYOUT, SPEC, STAGES
from mconv.convert.dialects.dialect import Dialect
from mconv.convert.dialects.keys import bias_spec as bias_spec
from mconv.convert.dialects.keys import chunk_layers, left_of, of_dtype
from mconv.convert.formats.tensors import Located
from mconv.convert.spelling.claim import ARG, claim, written
from mconv.convert.spelling.table import Family
from mconv.errors import AmbiguousCheckpoint, ConfigError
from mconv.shard.layout import Layout
from mconv.shard.stages import EVEN, Uneven
from mconv.spec import UNNAMED, ModelSpec

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

UNEVEN = {row.spec: row.key for row in STAGES}
"""Fields of `Uneven` -> the args that say them."""


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


RUN: dict[str, Any] = {
    "apply_query_key_layer_scaling": False,  # scores are divided by the layer's number and multiplied by it again
    "expert_model_parallel_size": 1, "context_parallel_size": 1, "data_parallel_size": 1,
    "pipeline_model_parallel_layout": None,
    "attention_dropout": 0.0, "hidden_dropout": 0.0, "init_method_std": 0.02, "init_method_xavier_uniform": False,
    "no_persist_layer_norm": False, "bias_swiglu_fusion": True, "overlap_p2p_comm": False, "fp8_param_gather": False,
    "config_logger_dir": "", "cp_comm_type": ["p2p"], "spec": None, "ckpt_format": "torch_dist",
    "no_save_optim": True, "no_save_rng": True,
    "consumed_train_samples": 0, "consumed_valid_samples": 0, "skipped_train_samples": 0,
}  # fmt: skip
"""Args that are the same in every checkpoint of ours."""


def args_of(spec: ModelSpec, layout: Layout, *, dtype: str, iteration: int = 0) -> Namespace:
    """Return the args of a checkpoint, as Megatron-LM's `--use-checkpoint-args` and Megatron-Bridge read them."""
    values = {name: allowed[0] for name, allowed in WRITTEN.items()} | RUN
    values |= written(SPEC, spec) | written(LAYOUT, layout) | written(STAGES, layout.uneven)
    # Megatron derives one of these from the other, but where stages are uneven only the second makes sense.
    layers, chunks = chunk_layers(spec, layout), layout.vpp if layout.vpp > 1 and layout.uneven != EVEN else None
    return Namespace(
        **values, **of_dtype(dtype), world_size=layout.tp * layout.pp, iteration=iteration,
        num_layers_per_virtual_pipeline_stage=layers, num_virtual_stages_per_pipeline_rank=chunks,
    )  # fmt: skip


def spec_of(
    args: Namespace,
    *,
    tensors: Mapping[str, Located] | None = None,
    vocab_size: int | None = None,
    settled: bool = False,
) -> ModelSpec:
    """Return the architecture that args describe. `vocab_size` is the true one where the args do not know it.

    Reads the fields alone: `arguments.check` has looked at every other arg before.
    """
    fields = claim(SPEC, left_of(args), flag=ARG)
    fields["vocab_size"] = _true_vocab(vars(args), fields["vocab_size"], given=vocab_size)
    return ModelSpec(family=UNNAMED, **fields)


def layout_of(args: Namespace, tensors: Mapping[str, Located] | None = None) -> Layout:
    """Return the layout that a checkpoint's args describe."""
    left = left_of(args)
    return Layout(**claim(LAYOUT, left, flag=ARG), uneven=Uneven(**claim(STAGES, left, flag=ARG)))


def assumptions(args: Namespace, tensors: Mapping[str, Located]) -> tuple[str, ...]:
    """Megatron-LM up to core 0.19.2 has a flag for llama3's factor, keeps it, and computes with 8 all the same."""
    values = vars(args)
    factor, ours = values.get("rope_scaling_factor", 8.0), "rope_low_freq_factor" in values
    if ours or not values.get("use_rope_scaling") or factor == 8:
        return ()
    return (
        f"its args have rope_scaling_factor {factor}, which mconv uses; but Megatron-LM up to core 0.19.2 "
        "computes with 8 in any case, so 8 is right for a model that was trained there from scratch: change "
        "it in the exported config.json",
    )


def _true_vocab(values: dict[str, Any], size: int | None, *, given: int | None) -> int:
    """Return the true vocabulary. Padded rows of a trained checkpoint hold anything, so it cannot be found in them."""
    if size is None and given is None:
        raise AmbiguousCheckpoint(
            f"the checkpoint does not say its true vocabulary size (padded: {values.get('padded_vocab_size')}); "
            "give --vocab-size, the number of tokens of its tokenizer"
        )
    if size is None:
        return int(given or 0)
    # Megatron's NullTokenizer counts one more than it is told: it adds an end-of-document token, which may be unused.
    null = values.get("tokenizer_type") == "NullTokenizer"
    if given not in (None, size, size + null):
        raise ConfigError(f"the checkpoint's args say a vocabulary of {size}, not {given}")
    return given or size + null


def refusals(spec: ModelSpec, layout: Layout) -> list[str]:
    """Return what a model has that Megatron-LM cannot compute."""
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
    assumptions=assumptions,
)
