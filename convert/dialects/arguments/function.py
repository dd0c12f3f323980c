"""Args of Megatron-LM and keys of Megatron-Bridge that change the function, and what must be true of them.

Sources: those of `training.py` and `config.py`; what an arg does, from Megatron-LM core_v0.19.0 (`gpt_builders.py`,
`megatron/training/argument_utils.py`, `megatron/core/transformer`), its legacy model from core_v0.15.3
(`megatron/legacy/model`), `attn_logit_softcapping` from commit b13d8b95 of July 2026.
"""

from typing import Any

from mconv.convert.dialects.arguments.rows import OFF, Condition
from mconv.convert.dialects.arguments.text import names

NONE = (None, 0)
Neutral = dict[str, tuple[Any, ...]]

WRITTEN: Neutral = {
    "rotary_percent": (1.0,), "openai_gelu": OFF, "rotary_interleaved": OFF, "apply_layernorm_1p": OFF,
    "squared_relu": OFF, "apply_residual_connection_post_layernorm": OFF,
    "multi_latent_attention": OFF, "num_experts": NONE, "mtp_num_layers": NONE, "use_mup": OFF,
    "heterogeneous_layers_config_path": (None,), "softmax_type": ("vanilla",), "attention_output_gate": OFF,
    "linear_attention_type": (None,), "glu_linear_offset": (0.0,), "softmax_scale": (None,),
    "activation_func_clamp_value": (None,), "quick_geglu": OFF, "experimental_attention_variant": (None,),
    "no_rope_freq": (None, 0, []), "qk_l2_norm": OFF, "layernorm_zero_centered_gamma": OFF, "rope_type": (None, "rope"),
    "mrope_section": (None,), "is_hybrid_model": OFF, "hybrid_override_pattern": (None,),
    "window_attn_skip_freq": (None, 0, []),
    # These two do not: position_embedding_type decides, and clipping changes weights while they are trained.
    "add_position_embedding": (True, False, None), "qk_clip": (False, True, None),
}  # fmt: skip
"""Args that change the function, and the values with which they do not; the first is written into args of ours."""

READ: Neutral = {
    "attn_logit_softcapping": (None,), "num_moe_experts": NONE, "linear_attention_freq": NONE, "quant_recipe": (None,),
    "hybrid_layer_pattern": (None,), "hybrid_attention_ratio": (0.0, None), "hybrid_mlp_ratio": (0.0, None),
    "heterogeneous_layers_config_encoded_json": (None, ""), "heterogeneous_block_specs": OFF,
    "enable_mhc_connections": OFF, "retro_add_retriever": OFF, "flextron": OFF, "enable_gpt_oss": OFF,
    "decoder_num_layers": NONE, "onnx_safe": OFF, "export_num_medusa_heads": NONE, "export_num_eagle_layers": NONE,
    "export_num_mtp": NONE, "export_qk_l2_norm": OFF, "export_offline_model": OFF, "export_quant_cfg": (None, "None"),
    "export_real_quant_cfg": (None, "None"), "ammo_quant_cfg": (None, "None"), "export_model_type": ("GPTModel", None),
}  # fmt: skip
"""More of them, which we do not write: of one version, or of a program beside the plain one."""

HYBRID = "saved by pretrain_hybrid.py or pretrain_mamba.py, one key a sub-layer; mconv reads what pretrain_gpt.py saves"
MEANINGS = dict.fromkeys(("hybrid_layer_pattern", "hybrid_override_pattern", "is_hybrid_model"), HYBRID)
"""Explanations of args whose name and value do not explain themselves."""

CONDITIONS = (
    Condition(unless=("num_experts", "num_moe_experts"), names=names("""
        export_moe_apply_probs_on_input moe_apply_probs_on_input moe_aux_loss_coeff moe_combine_bwd_dtype
        moe_deepep_num_sms moe_dispatch_fwd_dtype moe_enable_deepep moe_enable_routing_replay
        moe_expert_capacity_factor moe_expert_rank_capacity_factor moe_extended_tp moe_ffn_hidden_size
        moe_flex_dispatcher_backend moe_flex_dispatcher_num_sms moe_grad_scale_func moe_grouped_gemm
        moe_hybridep_num_blocks_permute moe_hybridep_num_blocks_unpermute moe_hybridep_num_sms
        moe_hybridep_num_sms_preprocessing moe_hybridep_pad_uneven_dispatch_inputs moe_input_jitter_eps
        moe_latent_size moe_layer_freq moe_layer_recompute moe_mlp_glu_interleave_size moe_ncclep_static_shape
        moe_ncclep_zero_copy moe_pad_expert_input_to_capacity moe_pad_experts_for_cuda_graph_inference
        moe_paged_stash moe_paged_stash_buffer_size_factor_cpu moe_paged_stash_buffer_size_factor_cuda
        moe_paged_stash_page_size moe_per_layer_logging moe_permute_fusion moe_permute_fusion_into_hybridep
        moe_router_bias_update_rate moe_router_dtype moe_router_enable_expert_bias moe_router_force_biased
        moe_router_force_load_balancing moe_router_fusion moe_router_group_topk moe_router_load_balancing_type
        moe_router_num_groups moe_router_padding_for_fp8 moe_router_padding_for_quantization
        moe_router_pre_softmax moe_router_quantile_balancing_ema moe_router_score_function moe_router_topk
        moe_router_topk_limited_devices moe_router_topk_scaling_factor moe_shared_expert_gate
        moe_shared_expert_glu_interleave_size moe_shared_expert_intermediate_size moe_shared_expert_overlap
        moe_single_grouped_bias moe_single_grouped_weight moe_token_dispatcher_type moe_token_drop_policy
        moe_token_dropping moe_upcycling_granularity moe_use_grouped_tensor moe_use_legacy_grouped_gemm
        moe_use_upcycling moe_z_loss_coeff use_grouped_gemm_for_shared_expert
    """)),
    Condition(unless=("multi_latent_attention",), names=names("""
        cache_mla_latents kv_lora_rank mla_down_proj_fusion mscale mscale_all_dim q_lora_rank qk_head_dim
        qk_pos_emb_head_dim rotary_scaling_factor v_head_dim
    """)),
    Condition(unless=("mtp_num_layers",), names=names("""
        mtp_detach_heads mtp_grad_scale_func mtp_hsm mtp_hybrid_override_pattern mtp_loss_scaling_factor
        mtp_standalone mtp_use_repeated_layer
    """)),
    Condition(unless=("experimental_attention_variant",), names=names("""
        dsa_indexer_head_dim dsa_indexer_k_norm_epsilon dsa_indexer_k_norm_fp32 dsa_indexer_loss_coeff
        dsa_indexer_n_heads dsa_indexer_rope_interleaved dsa_indexer_rotate_activation dsa_indexer_scoring_relu
        dsa_indexer_skip_topk_offset dsa_indexer_topk dsa_indexer_topk_freq dsa_indexer_use_sparse_loss
        dsa_kernel_backend experimental_attention_variant_loss_scale_func gdp_cutedsl_kernel
        gdp_num_chunk_states_to_recompute gdp_num_householder linear_conv_kernel_dim linear_key_head_dim
        linear_num_key_heads linear_num_value_heads linear_value_head_dim
    """)),
    Condition(unless=("is_hybrid_model", "hybrid_layer_pattern", "hybrid_override_pattern"), names=names("""
        disable_mamba_mem_eff_path mamba_head_dim mamba_inference_conv_states_dtype
        mamba_inference_ssm_states_dtype mamba_num_groups mamba_num_heads mamba_state_dim
        mamba_training_ssm_states_dtype use_mamba_mem_eff_path
    """)),
    Condition(unless=("use_mup",), names=names("""
        mup_attn_scale_power mup_base_head_dim mup_base_hidden_size mup_embedding_mult mup_output_mult
        mup_width_mult
    """)),
    Condition(unless=("enable_mhc_connections",), names=names("""
        mhc_init_gating_factor mhc_num_residual_streams mhc_recompute_layer_num mhc_sinkhorn_iterations
    """)),
    Condition(unless=("retro_add_retriever",), names=names("""
        retro_attention_gate retro_bert_tokenizer_type retro_bert_vocab_file retro_block_size retro_chunk_length
        retro_cyclic_train_iters retro_encoder_attention_dropout retro_encoder_hidden_dropout
        retro_encoder_layers retro_neighbor_dirs retro_num_neighbors retro_num_retrieved_chunks
        retro_project_dir retro_return_doc_ids retro_split_preprocessing retro_verify_neighbor_count
        retro_workdir
    """)),
    Condition(unless=("flextron",), names=names("""
        add_skipping basemodel_type binary_mask bpe_kv_cache bpe_max_buffer bpe_params bpe_ssm_cache budget_list
        budget_probs budget_type disable_budget distill_coeff distill_only distillation emb_int_list
        emb_per_list enable_router flex_hetero_ffn flex_hetero_mamba flex_hetero_moe_expert flex_strict
        flextron_config_file force_emb force_mamba force_mlp force_router_skip freeze_model freeze_router
        hard_sample_th is_flex_eval layer_ranking_list linear_scaler_end linear_scaler_start log_budgets
        loss_alpha lr_mult_router mamba_int_list mamba_per_list mem_batch_size mem_infer_seq_len memory_profile
        memory_profile_path mlp_int_list mlp_per_list moe_expert_int_list moe_expert_per_list no_attn_skip
        normalize_router_logits original_model_sample_prob override_selected_budget param_budget_target
        prefill_chunk_size router_beta router_gbs router_inter_dim router_std skip_num_attn_layer_constraint
        skip_total_layer_constraint slice soft_mask tau_decay tau_init
    """)),
    Condition(unless=("position_embedding_type",), names=names("""
        relative_attention_max_distance relative_attention_num_buckets yarn_beta_fast yarn_beta_slow
        yarn_correction_range_round_to_int yarn_original_max_position_embeddings yarn_rotary_scaling_factor
        yarn_mscale yarn_mscale_all_dim
    """)),
    Condition(unless=("squared_relu",), names=names("""
        use_fused_weighted_squared_relu
    """)),)  # fmt: skip
"""Args that only a model has which one of the switches above rules out, and that are there in every other one, too."""

OPEN = ("spec", "activation_func", "gated_linear_unit", "use_grouped_gemm_for_dense_mlp", "dense_grouped_gemm",
        "modelopt_enabled", "load_model_opt_format", "use_arbitrary_attention_mask")  # fmt: skip
"""Known names that no row claims: they may change the function or not, which the user can know and mconv cannot."""
