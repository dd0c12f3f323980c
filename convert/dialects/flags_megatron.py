"""Megatron-LM's flags, of megatron-core's model and of the older one beside it (`--use-legacy-models`).

Sources: Megatron-LM core_v0.16.1, core_v0.17.1, core_v0.18.2, core_v0.19.0: `arguments.py`, `load_args_from_checkpoint`
in `checkpointing.py`, `gpt_builders.py`, from 0.19 on `gpt_config_from_args` in `argument_utils.py` (0.19.2's wheel reads
the same of rope), and `legacy/model/language_model.py`. What was read there is in `tests/convert/megatron_facts.json`,
and a test holds the table against it.
"""

from typing import Any

from mconv.convert.dialects.flags import Case, Row, Warning, render, whole
from mconv.convert.dialects.keys import chunk_layers, is_built_in
from mconv.shard.stages import EVEN

PROGRAM = "Megatron-LM"
BEFORE_0_19, BEFORE_0_20 = "core 0.16 to 0.18", "core 0.16 to 0.19"


def chunks(case: Case) -> int | None:
    """Return the number of virtual stages, where there are several."""
    return case.layout.vpp if case.layout.vpp > 1 else None


def layers_of_chunk(case: Case) -> int | None:
    """Return the layers of a virtual stage, where all have the same number."""
    return chunk_layers(case.spec, case.layout)


def rank_files(case: Case) -> Any:
    """Return True for a checkpoint of one file a rank."""
    return case.format == "mp_rank" or None


def uneven(case: Case) -> str | None:
    """Return what is wrong with uneven stages in a program that has only even ones."""
    return None if case.layout.uneven == EVEN else "its stages hold different numbers of layers; it shares them evenly"


def side_by_side(case: Case) -> str | None:
    """Return what is wrong with Falcon's layer in a program that has none."""
    return "attention and MLP side by side: only mconv's own layer computes it" if case.spec.parallel_attention else None


def alibi(case: Case) -> str | None:
    """Return what is wrong with ALiBi in a program that has none."""
    return "ALiBi: it has none" if case.spec.position == "alibi" else None


def _empty_stage(case: Case) -> str | None:
    """Return what is wrong with a stage of no layers: refused there, and possible here."""
    if 0 not in (case.layout.uneven.first, case.layout.uneven.last):
        return None
    return "its first or last stage holds no layers, which it refuses; account for the embedding or the loss instead"


def _several_groups(case: Case) -> str | None:
    """Return what is wrong with more than one query group on a rank, where a group is more than a head."""
    spec, groups = case.spec, case.spec.num_query_groups // case.layout.tp
    if groups <= 1 or spec.num_query_groups == spec.num_attention_heads:
        return None
    return (
        f"{groups} query groups on a rank: its attention stops with an error of view(); tp {spec.num_query_groups} works"
    )


def _linear(case: Case) -> float | int | None:
    return whole(case.spec.rope.factor) if case.spec.rope.kind == "linear" else None


def _llama3(case: Case) -> Any:
    return case.spec.rope.kind == "llama3" or None


def _dropped_factor(case: Case) -> str | None:
    if _linear(case) is None:
        return None
    return (
        f"rope is stretched by {_linear(case)}, and --rotary-seq-len-interpolation-factor is parsed but never reaches "
        "the model; core 0.19 uses it"
    )


def _other_factor(case: Case) -> str | None:
    if not _llama3(case) or case.spec.rope.factor == 8:
        return None
    return (
        f"rope factor {case.spec.rope.factor:g}: --rope-scaling-factor is parsed but never used; it computes with 8 "
        "(up to 0.19.2; repaired upstream for 0.20)"
    )


def _other_bounds(case: Case) -> str | None:
    if is_built_in(case.spec.rope):
        return None
    return "rope's low and high factor and original length differ from the 1, 4, 8192 that megatron-core has built in"


LOAD = (
    Row(decides="the checkpoint", flag="--load", value=lambda case: case.load),
    Row(decides="whether its args are taken", args=("use_checkpoint_args",), flag="--use-checkpoint-args",
        value=lambda case: True),
    Row(decides="what is loaded", args=("finetune",), flag="--finetune", value=lambda case: case.numbered or None,
        printed="if the tracker names an iteration; a `release` has no optimizer and no random state to look for"),
    Row(decides="the format", args=("ckpt_format",), flag="--ckpt-format",
        value=lambda case: "torch" if rank_files(case) else None,
        printed="`torch` for `mp_rank`; `torch_dist` is the default"),
    Row(decides="tensor-parallel ranks", args=("tensor_model_parallel_size",), flag="--tensor-model-parallel-size",
        value=lambda case: case.layout.tp),
    Row(decides="pipeline stages", args=("pipeline_model_parallel_size",), flag="--pipeline-model-parallel-size",
        value=lambda case: case.layout.pp),
)  # fmt: skip
SAID = (
    Row(decides="sizes", args=("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels"),
        restored="default"),
    Row(decides="query groups", args=("group_query_attention", "num_query_groups"), restored="always"),
    Row(decides="positions that the model has", args=("max_position_embeddings",), restored="default",
        flag="--max-position-embeddings", value=lambda case: case.spec.max_position_embeddings),
    Row(decides="tokens of a sample", args=("seq_length",), restored="default", flag="--seq-length",
        value=lambda case: case.spec.max_position_embeddings,
        printed="the model's positions; fewer are as good, and the flag wins"),
    Row(decides="rows of the embedding", args=("padded_vocab_size",), restored="default"),
    Row(decides="kind of positions", args=("position_embedding_type", "add_position_embedding",
        "use_rotary_position_embeddings"), restored="always",
        warning=Warning(text=alibi, docs="ALiBi")),
    Row(decides="kind of norm", args=("normalization", "apply_layernorm_1p"), restored="always"),
    Row(decides="norm epsilon", args=("layernorm_epsilon", "norm_epsilon"), flag="--norm-epsilon",
        value=lambda case: case.spec.norm_epsilon),
    Row(decides="gated MLP", args=("swiglu", "squared_relu"), restored="always"),
    Row(decides="form of GELU", args=("bias_gelu_fusion",), flag="--no-bias-gelu-fusion",
        value=lambda case: case.spec.activation == "gelu" or None,
        printed="for the exact one; the fused one is the tanh form"),
    Row(decides="biases", args=("add_bias_linear", "add_qkv_bias"), restored="always"),
    Row(decides="a head of its own", args=("untie_embeddings_and_output_weights",), restored="always"),
    Row(decides="the layer",
        warning=Warning(text=side_by_side, docs="attention and MLP side by side (Falcon)")),
    Row(decides="dropout", args=("attention_dropout",), restored="always", flag="--attention-dropout",
        value=lambda case: 0.0),
    Row(decides="dropout", args=("hidden_dropout",), restored="always", flag="--hidden-dropout", value=lambda case: 0.0),
    Row(decides="dtype of the computation", args=("bf16", "fp16", "params_dtype"), flag="--bf16",
        value=lambda case: case.dtype == "bfloat16" or None, printed="for bfloat16 weights; without it all is fp32"),
    Row(decides="dtype of the computation", args=("fp16",), flag="--fp16",
        value=lambda case: case.dtype == "float16" or None, printed="for float16 weights"),
)  # fmt: skip

MCORE: tuple[Row, ...] = (
    *LOAD,
    Row(decides="norms of query and key heads", args=("qk_layernorm",), flag="--qk-layernorm",
        value=lambda case: case.spec.qk_norm or None, printed="for Qwen3"),
    Row(decides="virtual stages", args=("num_virtual_stages_per_pipeline_rank", "virtual_pipeline_model_parallel_size"),
        flag="--num-virtual-stages-per-pipeline-rank", value=chunks, printed="with `--vpp`"),
    Row(decides="layers of the first stage", args=("decoder_first_pipeline_num_layers",),
        flag="--decoder-first-pipeline-num-layers", value=lambda case: case.layout.uneven.first, printed="as given"),
    Row(decides="layers of the last stage", args=("decoder_last_pipeline_num_layers",),
        flag="--decoder-last-pipeline-num-layers", value=lambda case: case.layout.uneven.last, printed="as given",
        warning=Warning(text=_empty_stage, docs="0 layers")),
    Row(decides="the embedding counted as a layer", args=("account_for_embedding_in_pipeline_split",),
        flag="--account-for-embedding-in-pipeline-split", value=lambda case: case.layout.uneven.embedding or None,
        printed="as given"),
    Row(decides="the loss counted as a layer", args=("account_for_loss_in_pipeline_split",),
        flag="--account-for-loss-in-pipeline-split", value=lambda case: case.layout.uneven.loss or None,
        printed="as given"),
    Row(decides="names of the norms", args=("transformer_impl",), flag="--transformer-impl",
        value=lambda case: "local" if rank_files(case) else None,
        printed="`local` for `mp_rank`, whose norms are not fused with linears: else they are left out in silence"),
    Row(decides="names of the norms", args=("no_persist_layer_norm",), flag="--no-persist-layer-norm", value=rank_files,
        printed="for `mp_rank`: torch's norms ask for it"),
    *SAID,
    Row(decides="sliding window", args=("window_size",), flag="--window-size",
        value=lambda case: f"{case.spec.sliding_window - 1},0" if case.spec.sliding_window else None,
        printed="for a window of w keys, as w-1,0"),
    Row(decides="rope base", args=("rotary_base", "rotary_percent", "rotary_interleaved"), restored="always"),
    Row(decides="linear rope scaling", args=("rotary_seq_len_interpolation_factor",),
        flag="--rotary-seq-len-interpolation-factor", value=_linear, printed="for rope that is stretched",
        warning=Warning(text=_dropped_factor, versions=BEFORE_0_19, docs="any factor: parsed, and never passed on")),
    Row(decides="llama3 rope scaling", args=("use_rope_scaling",), flag="--use-rope-scaling", value=_llama3,
        printed="for LLaMA 3.1 and later",
        warning=Warning(text=_other_bounds, docs="others than low 1, high 4, original length 8192")),
    Row(decides="its factor", args=("rope_scaling_factor",),
        warning=Warning(text=_other_factor, versions=BEFORE_0_20,
        docs="others than 8: `--rope-scaling-factor` is parsed, never passed on; repaired upstream for 0.20")),
)  # fmt: skip


def _other_base(case: Case) -> str | None:
    spec = case.spec
    if spec.position != "rope" or spec.rope.base == 10000:
        return None
    return f"rope base {whole(spec.rope.base)}: the older model computes with 10000, whatever --rotary-base says"


LEGACY: tuple[Row, ...] = (
    *LOAD,
    Row(decides="which model", args=("use_legacy_models",), flag="--use-legacy-models", value=lambda case: True,
        printed="core 0.16 and 0.17; 0.18 has this model no more"),
    Row(decides="virtual stages",
        args=("num_layers_per_virtual_pipeline_stage", "virtual_pipeline_model_parallel_size"),
        flag="--num-layers-per-virtual-pipeline-stage", value=layers_of_chunk, printed="with `--vpp`",
        warning=Warning(text=uneven, docs="stages of different sizes")),
    *SAID,
    Row(decides="attention", warning=Warning(text=_several_groups, versions="core 0.16 and 0.17",
        docs="several query groups on a rank (GQA): it stops with an error")),
    Row(decides="rope base", args=("rotary_base",), restored="always",
        warning=Warning(text=_other_base, docs="others than 10000: the older model does not read it")),
    Row(decides="linear rope scaling", args=("rotary_seq_len_interpolation_factor",),
        flag="--rotary-seq-len-interpolation-factor", value=_linear, printed="for rope that is stretched; used here"),
)  # fmt: skip


def mcore(case: Case) -> tuple[list[str], list[str]]:
    """Return Megatron-LM's flags for a checkpoint of megatron-core's model, and warnings where no flag is right."""
    return render(MCORE, case, program=PROGRAM)


def legacy(case: Case) -> tuple[list[str], list[str]]:
    """Return Megatron-LM's flags for a checkpoint of its older model, and warnings where no flag is right."""
    return render(LEGACY, case, program=PROGRAM)
