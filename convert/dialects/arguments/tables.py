"""The table of each program's args: put together from what the modules beside this one name."""

from mconv.convert.dialects.arguments import bridge, config, function, megatron_llm, running, training
from mconv.convert.dialects.arguments.rows import Arguments
from mconv.convert.dialects.arguments.text import names

SWITCHES = names("""
    swiglu group_query_attention use_rope_scaling parallel_attn parallel_layernorm untie_embeddings_and_output_weights
    add_bias_linear add_qkv_bias qk_layernorm use_rotary_position_embeddings account_for_embedding_in_pipeline_split
    account_for_loss_in_pipeline_split
""")
TEXTS = ("normalization", "position_embedding_type")
FIELDS = SWITCHES.union(TEXTS) | names("""
    num_layers hidden_size ffn_hidden_size num_attention_heads kv_channels max_position_embeddings num_query_groups
    bias_gelu_fusion window_size layernorm_epsilon norm_epsilon rotary_base rotary_seq_len_interpolation_factor
    rope_scaling_factor rope_low_freq_factor rope_high_freq_factor rope_original_max_position_embeddings
    vocab_size padded_vocab_size tokenizer_type tensor_model_parallel_size pipeline_model_parallel_size
    virtual_pipeline_model_parallel_size decoder_first_pipeline_num_layers decoder_last_pipeline_num_layers
    pipeline_model_parallel_layout
""")
"""Args that `dialects/mcore.py` reads."""
INERT = config.CONFIG.union(
    training.TRAINING, training.DATA, training.CHECKPOINTS, running.RANKS, running.LOGS, running.ANSWERS, running.OTHERS,
    running.SET_IN_CODE,
)  # fmt: skip

MEGATRON_LM = Arguments(
    program="Megatron-LM",
    fields=FIELDS,
    kinds=dict.fromkeys(SWITCHES, (bool,)) | dict.fromkeys(TEXTS, (str,)),
    neutral=function.WRITTEN | function.READ,
    meanings=function.MEANINGS,
    conditions=function.CONDITIONS,
    inert=INERT,
)
"""Megatron-LM of every generation: NVIDIA's legacy model and megatron-core have one parser."""

MEGATRON_LLM = Arguments(
    program="Megatron-LLM",
    fields=megatron_llm.FIELDS,
    kinds=megatron_llm.KINDS,
    neutral=megatron_llm.NEUTRAL,
    conditions=(),
    inert=(INERT | megatron_llm.INERT).difference(megatron_llm.FIELDS, megatron_llm.NEUTRAL),
)
"""epfLLM's Megatron-LLM: its parser is Megatron-LM's of 2022 with few names of its own."""

BRIDGE = Arguments(
    program="Megatron-Bridge",
    fields=bridge.FIELDS,
    neutral=bridge.NEUTRAL,
    conditions=function.CONDITIONS,
    inert=(config.CONFIG | bridge.INERT) - bridge.FIELDS,
)
"""The model section of Megatron-Bridge's run_config.yaml; what `dialects/bridge.py` claims by itself is not in here."""

BRIDGE_SECTIONS = Arguments(
    program="run_config.yaml", fields=bridge.SECTIONS, neutral={"peft": (None,)}, conditions=(), inert=frozenset()
)
"""The sections of that file."""
