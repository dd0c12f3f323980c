"""Args of Megatron-LLM that Megatron-LM has not, and those that decide the function.

Source: epfLLM/Megatron-LLM, main of 2024 (v1.0.0 and after), `megatron/arguments.py`, `finetune.py`; what an arg does:
`megatron/model/transformer.py`; `bias_droput_fusion` is written so by `weights_conversion/hf_to_megatron.py`.
"""

from typing import Any

from mconv.convert.dialects.arguments.rows import OFF
from mconv.convert.dialects.arguments.text import names

SWITCHES = ("use_rms_norm", "use_bias", "parallel_attn", "parallel_layernorm", "tie_embed_logits", "bias_gelu_fusion")
NUMBERS = ("layernorm_epsilon", "rope_theta", "rope_scaling_factor")
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(SWITCHES, (bool,)), **dict.fromkeys(NUMBERS, (int, float)),
    "true_vocab_size": (int,), "model_name": (str,), "glu_activation": (str,),
}  # fmt: skip
FIELDS = names("""
    num_layers encoder_num_layers hidden_size ffn_hidden_size num_attention_heads num_attention_heads_kv kv_channels
    max_position_embeddings sliding_window_size position_embedding_type padded_vocab_size tensor_model_parallel_size
    pipeline_model_parallel_size virtual_pipeline_model_parallel_size
""").union(KINDS)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_post_ln": OFF, "apply_residual_connection_post_layernorm": OFF, "onnx_safe": OFF, "num_experts": (None, 0),
    "decoder_num_layers": (None, 0),
}  # fmt: skip
"""Args that change the function, and the values with which they do not."""
INERT = names("""
    bias_droput_fusion data_type eval_only lima_dropout load_iters metrics new_tokens scalar_loss_mask skip_iters
    tokenizer_type vocab_extra_ids_list wandb_api_key wandb_id wandb_logger wandb_name wandb_resume
""")
