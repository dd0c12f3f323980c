"""Megatron-LLM's flags.

Source: epfLLM/Megatron-LLM at 806a833, `arguments.py`, `checkpointing.py`, `model/transformer.py`.
"""

from mconv.convert.dialects.flags import Case, Row, Warning, render, whole
from mconv.convert.dialects.flags_megatron import layers_of_chunk, uneven

PROGRAM = "Megatron-LLM"


def _window(case: Case) -> str | None:
    if not case.spec.sliding_window:
        return None
    last = case.spec.sliding_window - 1
    return (
        f"its attention sees one key more than --sliding_window_size says, so {last} is right for {last + 1} visible "
        "keys; but its own Mistral class insists on 4096, which is one too many"
    )


ROWS: tuple[Row, ...] = (
    Row(decides="the checkpoint", flag="--load", value=lambda case: case.load),
    Row(decides="whether its args are taken", args=("use_checkpoint_args",), flag="--use_checkpoint_args",
        value=lambda case: True),
    Row(decides="what is loaded", args=("finetune",), flag="--finetune", value=lambda case: case.numbered or None,
        printed="if the tracker names an iteration"),
    Row(decides="tensor-parallel ranks", args=("tensor_model_parallel_size",), restored="always",
        flag="--tensor_model_parallel_size", value=lambda case: case.layout.tp),
    Row(decides="pipeline stages", args=("pipeline_model_parallel_size",), restored="always",
        flag="--pipeline_model_parallel_size", value=lambda case: case.layout.pp),
    Row(decides="virtual stages", args=("num_layers_per_virtual_pipeline_stage",), restored="default",
        flag="--num_layers_per_virtual_pipeline_stage", value=layers_of_chunk, printed="with `--vpp`",
        warning=Warning(text=uneven, docs="stages of different sizes")),
    Row(decides="sizes", args=("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads",
        "num_attention_heads_kv", "kv_channels"), restored="default"),
    Row(decides="positions that the model has", args=("max_position_embeddings",), restored="default",
        flag="--max_position_embeddings", value=lambda case: case.spec.max_position_embeddings),
    Row(decides="tokens of a sample", args=("seq_length",), restored="default", flag="--seq_length",
        value=lambda case: case.spec.max_position_embeddings,
        printed="the model's positions; fewer are as good, and the flag wins"),
    Row(decides="rows of the embedding", args=("padded_vocab_size", "make_vocab_size_divisible_by"), restored="always"),
    Row(decides="kind of positions", args=("position_embedding_type",), restored="always"),
    Row(decides="kind of norm", args=("use_rms_norm",), restored="always"),
    Row(decides="norm epsilon", args=("layernorm_epsilon",), flag="--layernorm_epsilon",
        value=lambda case: case.spec.norm_epsilon),
    Row(decides="gated MLP", args=("glu_activation",), restored="default"),
    Row(decides="form of GELU", args=("bias_gelu_fusion",), flag="--no_bias_gelu_fusion",
        value=lambda case: True),
    Row(decides="biases", args=("use_bias",), flag="--use_bias", value=lambda case: case.spec.mlp_bias or None,
        printed="for a model with biases"),
    Row(decides="a tied head", args=("tie_embed_logits",), restored="always"),
    Row(decides="attention and MLP side by side", args=("parallel_attn", "parallel_layernorm"), restored="always"),
    Row(decides="sliding window", args=("sliding_window_size",), restored="default", flag="--sliding_window_size",
        value=lambda case: case.spec.sliding_window - 1 if case.spec.sliding_window else None,
        printed="for a window of w keys, as w-1", warning=Warning(text=_window, docs="any window, in its Mistral class")),
    Row(decides="the kernel that knows windows", args=("use_flash_attn",), flag="--use_flash_attn",
        value=lambda case: True),
    Row(decides="rope base", args=("rope_theta",), flag="--rope_theta", value=lambda case: case.spec.rope.base),
    Row(decides="linear rope scaling", args=("rope_scaling_factor",), flag="--rope_scaling_factor",
        value=lambda case: whole(case.spec.rope.factor)),
    Row(decides="dropout", args=("hidden_dropout",), flag="--hidden_dropout", value=lambda case: 0.0),
    Row(decides="dropout", args=("attention_dropout",), flag="--attention_dropout", value=lambda case: 0.0),
    Row(decides="dtype of the computation", args=("bf16", "params_dtype"), flag="--bf16",
        value=lambda case: case.dtype == "bfloat16" or None, printed="for bfloat16 weights; without it all is fp32"),
    Row(decides="dtype of the computation", args=("fp16",), flag="--fp16",
        value=lambda case: case.dtype == "float16" or None, printed="for float16 weights"),
)  # fmt: skip


def flags(case: Case) -> tuple[list[str], list[str]]:
    """Return Megatron-LLM's flags for a checkpoint, and warnings where no flag is right."""
    return render(ROWS, case, program=PROGRAM)
