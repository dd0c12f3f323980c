"""Keys of any `config.json` that do not change what the model computes, and values of others that say nothing.

`tests/convert/test_keys.py` looks at transformers for this: it records which keys its code reads while a model is loaded
and run, holds each to be claimed by a row, and sees the same logits whatever the keys of `BASE_KEYS` say.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mconv.convert.spelling.keys import Config, Constant, Kept, Key, Left
from mconv.convert.spelling.values import equal


@dataclass(frozen=True, slots=True)
class Neutral:
    """Keys of other families with the values that say nothing; with any other value, no row claims them."""

    values: Mapping[str, tuple[Any, ...]]

    def read(self, left: Left) -> Config:
        for name in left.keys() & self.values.keys():
            if any(equal(left[name], value) for value in self.values[name]):
                del left[name]
        return {}

    def write(self, spec: Any, out: Config) -> None: ...


@dataclass(frozen=True, slots=True)
class SaysNothing:
    """Any key whose value is false, zero or empty, but those `but` names or whose zero would mean something.

    Its row stands last: what is left then, the program's code of the family does not read.
    """

    but: Collection[str]
    zero_means: re.Pattern[str]
    """Names (a part of one) of factors and sizes, of which zero is a value like any other."""

    def read(self, left: Left) -> Config:
        for name in [name for name, value in left.items() if self._nothing(name, value)]:
            del left[name]
        return {}

    def _nothing(self, name: str, value: Any) -> bool:
        if name in self.but or (type(value) in (int, float) and self.zero_means.search(name)):
            return False
        return value in (0, "", [], {})

    def write(self, spec: Any, out: Config) -> None: ...


BASE_KEYS = Kept((
    "_name_or_path", "_attn_implementation_autoset", "architectures", "model_type", "transformers_version",
    "torch_dtype", "dtype", "use_cache", "initializer_range", "attention_dropout", "pretraining_tp",
    "max_sequence_length", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id",
    "decoder_start_token_id", "return_dict", "output_hidden_states", "output_attentions", "torchscript",
    "chunk_size_feed_forward", "is_encoder_decoder", "is_decoder", "id2label", "label2id", "problem_type",
    "tokenizer_class", "prefix", "begin_suppress_tokens", "suppress_tokens", "finetuning_task", "task_specific_params",
    "use_bfloat16", "pruned_heads", "do_sample", "temperature", "top_p", "top_k", "is_llama_config", "unsloth_fixed",
    "unsloth_version", "transformers.js_config", "_attn_implementation", "attn_implementation", "tf_legacy_loss",
    "tie_encoder_decoder", "cross_attention_hidden_size", "remove_invalid_values", "return_dict_in_generate",
    "output_scores", "num_return_sequences", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "early_stopping", "bad_words_ids", "typical_p", "num_beam_groups", "diversity_penalty", "forced_bos_token_id",
    "forced_eos_token_id", "exponential_decay_length_penalty", "max_length", "min_length", "num_beams",
    "repetition_penalty", "max_new_tokens", "generation_config", "_flash_attn_2_enabled", "gradient_checkpointing",
    "num_labels", "model_max_length", "keys_to_ignore_at_inference", "embd_pdrop", "resid_pdrop", "min_p",
    "renormalize_logits", "assistant_confidence_threshold", "assistant_lookbehind", "encoder_repetition_penalty",
    "epsilon_cutoff", "eta_cutoff", "num_assistant_tokens", "num_assistant_tokens_schedule", "target_lookbehind",
    "num_logits_to_keep", "logits_to_keep", "cls_token_id", "mask_token_id", "use_return_dict",
    "neftune_noise_alpha", "use_flash_attn", "use_flash_attention", "use_flash_attention_2", "flash_attn",
    "flash_attention", "use_memory_efficient_attention", "use_xformers", "use_sdpa",
    "max_seq_len", "max_seq_length", "seq_length", "seq_len", "model_max_len", "max_length_tokens",
    "_model_name_or_path", "model_name_or_path", "name_or_path", "_commit_hash", "tokenizer_name",
    "tokenizer_name_or_path",
    "hidden_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "attn_dropout", "attn_pdrop",
    "resid_dropout",
    "embd_dropout", "embed_dropout", "classifier_dropout", "dropout", "activation_dropout", "layerdrop",
    "use_reentrant", "gradient_checkpointing_kwargs", "experts_implementation", "_experts_implementation", "init_std",
    "license", "author", "cache_implementation",
), emit={"attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True})  # fmt: skip
"""Keys on how a model was made, trained or sampled from."""

ONLY: tuple[Key, ...] = (
    *(Constant(name, False, emit=False) for name in (
        "rope_interleaved", "add_cross_attention", "output_cross_attentions",
    )),
    *(Constant(name, None, also=({}, False), emit=False) for name in (
        "auto_map", "quantization_config", "per_layer_config", "text_config", "decoder", "generator", "fusion_config",
        "kv_sharing_modes", "attention_chunk_size", "transformers_weights", "mtp_layer_types", "vision_aspect_ratio",
        "vision_feature_layer", "vision_feature_select_strategy",
    )),
    Constant("num_kv_shared_layers", None, also=(0,), emit=False),  # of the cache of transformers 5.0
    Constant("is_causal", True, emit=False),
)  # fmt: skip
"""Keys that transformers reads in every family, with the one value of them that mconv computes."""

YES = (
    "causal", "use_rope", "use_rotary", "rotary", "use_rotary_embedding", "use_rotary_embeddings", "use_rotary_pos_emb",
    "rotary_emb", "use_residual", "pre_norm", "pre_layer_norm", "do_layer_norm_before", "normalize_before", "use_glu",
    "gated_mlp", "mlp_gated", "scale_attn", "scale_attention", "use_final_norm", "final_norm", "use_causal_mask",
)  # fmt: skip
ONE = (
    "residual_multiplier", "embedding_multiplier", "logits_scaling", "logit_scale", "logits_scale", "scale_emb",
    "embedding_scale", "residual_scale", "lm_head_multiplier", "mlp_multiplier", "key_multiplier", "rotary_pct",
    "rotary_percent", "rope_pct", "rope_percent", "rope_ratio", "rope_factor", "rope_scaling_factor", 
)  # fmt: skip
NEUTRAL = Neutral({**dict.fromkeys(YES, (True,)), **dict.fromkeys(ONE, (1,))})
"""Keys of other families that say that the model is as LLaMA's descendants are."""
ZERO_MEANS = re.compile(r"multiplier|scal|factor|ratio|gain|pct|percent|theta|base|(^|_)eps|exponent|power|temp")
COMMON: tuple[Key, ...] = (*ONLY, BASE_KEYS, NEUTRAL, SaysNothing(but=(*YES, *ONE), zero_means=ZERO_MEANS))
"""The end of every family's table."""
