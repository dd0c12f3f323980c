"""Tensors that no row claims and that give away what they are: what to say of them, and what to do."""

import re
from collections.abc import Collection

SIGNS = (
    (r"\.(lora_(A|B|embedding_A|embedding_B|magnitude_vector)|base_layer)(\.|$)",
     "the parts of an adapter (LoRA) that is not merged", "merge it with PEFT (`merge_and_unload`) and save that"),
    (r"\.(qweight|qzeros|scales|g_idx|zeros)$", "weights quantised by GPTQ or AWQ", ""),
    (r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*|SCB|weight_format)$",
     "weights quantised by bitsandbytes", ""),
    (r"\.(weight_scale(_inv|_2)?|input_scale|output_scale|[qkvo]_scale|weight_packed|weight_shape|activation_scale)$",
     "quantised weights (fp8 or compressed-tensors) and their scales", ""),
    (r"(^|\.)_flat_param", "parameters that FSDP has flattened", "save a full state_dict (FULL_STATE_DICT)"),
    (r"(^|\.)(score|classifier|qa_outputs)\.(weight|bias)$", "the head of a classifier, which predicts no tokens", ""),
    (r"(^|\.)(v_head|value_head)\.", "the value head of a reward or PPO model", "save the language model alone"),
    (r"\.(experts|block_sparse_moe|shared_expert|router)\b|\.mlp\.gate\.", "a mixture of experts", ""),
    (r"(^|\.)(vision_tower|vision_model|visual|multi_modal_projector|vision_encoder|vision_language_adapter)\.",
     "a model of images and text", ""),
    (r"(^|\.)(audio_tower|speech_encoder|encoder\.layers)\.", "a model with an encoder", ""),
    (r"\.(q_norm|k_norm|q_layernorm|k_layernorm)\.", "norms of queries and keys (as in Qwen3, Gemma 3, OLMo 2)", ""),
    (r"\.(pre|post)_feedforward_layernorm\.", "a third and fourth norm in each layer (as Gemma 2 has them)", ""),
    (r"\.(self_attn|self_attention)\.(qkv_proj|W_pack|qkv)\.", "query, key and value in one tensor", ""),
    (r"\.mlp\.gate_up_proj\.", "both halves of the gated MLP in one tensor", ""),
    (r"(^|\.)(medusa_head|mtp|eagle)", "heads for speculative decoding", "save the model without them"),
    (r"(_extra_state|\._extra_state)$", "Transformer Engine's state", "save without it"),
    (r"\.parametrizations\.", "parametrised weights", "save them after torch's remove_parametrizations"),
)  # fmt: skip
"""Patterns of names, what each is the sign of, and advice."""


def named(unknown: Collection[str]) -> list[str]:
    """Return one line for each kind of tensor that the names give away: its first name, and how many there are."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in unknown:
        sign = next(((what, advice) for pattern, what, advice in SIGNS if re.search(pattern, name)), None)
        if sign:
            found.setdefault(sign, []).append(name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {what}, which this family's table does not have"
        + (f"; {advice}" if advice else "")
        for (what, advice), names in found.items()
    ]
