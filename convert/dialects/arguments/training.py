"""Args of Megatron-LM that never change the function: training, data, checkpoints.

Sources: the argument parsers of Megatron-LM, tags v2.0 to v2.6, 23.04, 23.06, core_v0.4.0 to core_v0.15.3
(`megatron/arguments.py`, later `megatron/training/arguments.py`, `megatron/post_training/arguments.py`), core_v0.16.1,
0.17.1, 0.18.2, 0.19.0 and main of 2026-08-22 (there also the dataclasses of `megatron/training/config`, of which
`ArgumentGroupFactory` makes args).
"""

from mconv.convert.dialects.arguments.text import names

TRAINING = names("""
    accumulate_allreduce_grads_in_fp32 activations_checkpoint_method activations_checkpoint_num_layers adam_beta1
    adam_beta2 adam_eps apply_wd_to_qk_layernorm batch_size bias_swiglu_fusion check_for_large_grads
    check_for_nan_in_loss_and_grad check_for_spiky_loss check_weight_hash_across_dp_replicas_interval
    checkpoint_activations checkpoint_num_layers clip_grad data_parallel_random_init dataloader_type decoupled_lr
    decoupled_min_lr decrease_batch_size_if_needed deprecated_use_mcore_models disable_jit_fuser
    distribute_checkpointed_activations dump_param_to_param_group_map empty_unused_memory_level enable_experimental
    enable_gloo_process_groups end_weight_decay eval_global_batch_size eval_interval eval_iters
    eval_micro_batch_size exit_duration_in_mins exit_interval exit_signal exit_signal_handler
    exit_signal_handler_for_dataloader exit_signal_handler_for_training exp_avg_dtype exp_avg_sq_dtype
    fp16_lm_cross_entropy fp32_allreduce fp4_param_gather fp8_e4m3 fp8_hybrid fp8_param_gather freeze_all_layers
    fsdp_db_use_persist_buf_on_alloc_fail full_validation global_batch_size gpu_sniff_test_interval
    grad_reduce_in_bf16 high_priority_stream_groups hysteresis init_method_xavier_uniform initial_loss_scale
    iterations_to_skip kitchen_config_file kitchen_recipe_number lion_beta1 lion_beta2 log_interval logit_dtype
    loss_scale loss_scale_window lr lr_decay_iters lr_decay_samples lr_decay_steps lr_decay_style lr_warmup_fraction
    lr_warmup_init lr_warmup_iters lr_warmup_samples lr_warmup_steps lr_wsd_decay_iters lr_wsd_decay_samples
    lr_wsd_decay_style main_grads_dtype main_params_dtype manual_gc manual_gc_eval manual_gc_interval
    megatron_fsdp_enable_fine_grained_param_gather megatron_fsdp_grad_comm_dtype megatron_fsdp_main_grads_dtype
    megatron_fsdp_main_params_dtype megatron_fsdp_max_pool_double_buffer memory_snapshot_path micro_batch_size
    min_loss_scale min_lr multiple_validation_sets muon_coefficient_type muon_extra_scale_factor
    muon_fp32_matmul_prec muon_momentum muon_nesterov muon_num_ns_steps muon_scalar_optimizer muon_scale_mode
    muon_split_qkv muon_tp_mode muon_use_nesterov muon_use_syrk no_persist_layer_norm no_weight_decay_cond_type
    optimizer optimizer_cpu_offload optimizer_cuda_graph optimizer_offload_fraction overlap_cpu_optimizer_d2h_h2d
    override_lr_scheduler override_opt_param_scheduler pin_cpu_grads pin_cpu_params profile profile_ranks
    profile_step_end profile_step_start rampup_batch_size recompute_activations record_memory_history
    result_rejected_tracker_filename reuse_grad_buf_for_mxfp8_param_ag scaled_masked_softmax_fusion
    scaled_upper_triang_masked_softmax_fusion seed sgd_momentum skip_train start_eval_at_iter start_weight_decay
    step_batch_size_schedule te_precision_config_file te_rng_tracker tensorboard_dir tp_comm_overlap_cfg train_iters
    train_samples train_sync_interval use_checkpoint_lr_scheduler use_checkpoint_opt_param_scheduler use_flash_attn
    use_legacy_models use_mcore_models use_precision_aware_optimizer use_pytorch_profiler
    use_torch_optimizer_for_cpu_offload validation_set_names warmup wd_incr_steps weight_decay
    weight_decay_incr_style wsd_decay_steps yaml_cfg
""")
"""Batches, steps, schedule, optimizer, regularisation, validation, random numbers."""
DATA = names("""
    allow_ambiguous_pad_tokens chat_template create_attention_mask_in_dataloader data_args_path data_cache_path
    data_impl data_path dataloader_defer_npy_index_mmap dataloader_fast_cache_load dataloader_inter_document_masking
    decoder_seq_length encoder_seq_length eod_mask_loss fim_data fim_eod_token fim_fragment_rate fim_middle_token
    fim_no_prefix fim_pad_token fim_prefix_token fim_rate fim_split_sample fim_spm_rate fim_suffix_token
    legacy_tokenizer make_vocab_size_divisible_by mask_prob merge_file metadata_path mid_level_dataset_surplus
    mmap_bin_files mmap_warmup mock_data null_tokenizer_eod_id null_tokenizer_pad_id num_dataset_builder_threads
    num_workers object_storage_cache_path pad_vocab_size per_dataset_sequences_path per_split_data_args_path
    phase_transition_iterations renormalize_blend_weights reset_attention_mask reset_position_ids
    retriever_seq_length s3_cache_path sample_rate seq_length sft sft_tokenizer_prompt_format short_seq_prob
    special_tokens split test_data_path tiktoken_num_special_tokens tiktoken_pattern tiktoken_special_tokens
    tokenizer_hf_include_special_tokens tokenizer_hf_no_include_special_tokens tokenizer_hf_no_use_fast
    tokenizer_hf_use_fast tokenizer_metadata tokenizer_model tokenizer_sentencepiece_ignore_extra_whitespaces
    tokenizer_sentencepiece_legacy tokenizer_special_tokens train_data_path trust_remote_code use_gigatoken
    valid_data_path vocab_extra_ids vocab_file
""")
"""Data sets, tokenizers, fine-tuning on conversations."""
CHECKPOINTS = names("""
    async_ckpt_cpu_priority async_ckpt_io_priority async_ckpt_use_cpu_shm async_save async_strategy
    auto_detect_ckpt_format ckpt_assume_constant_structure ckpt_convert_format ckpt_convert_save
    ckpt_convert_update_legacy_dist_opt_format ckpt_drop_redundant_extra_state ckpt_format ckpt_fully_parallel_load
    ckpt_fully_parallel_load_exchange_algo ckpt_fully_parallel_load_per_rank_objects
    ckpt_fully_parallel_load_process_group ckpt_fully_parallel_save ckpt_fully_parallel_save_deprecated
    ckpt_fully_parallel_save_process_group ckpt_load_validate_sharding_integrity ckpt_pg_tensors_cache_create
    ckpt_pg_tensors_cache_path ckpt_step disable_msc_deprecated dist_ckpt_format dist_ckpt_format_deprecated
    dist_ckpt_optim_fully_reshardable dist_ckpt_save_pre_mcore_014 dist_ckpt_strictness dist_ckpt_workers
    distrib_optim_fully_reshardable_mem_efficient enable_msc exit_on_missing_checkpoint finetune fully_parallel_load
    fully_parallel_save load load_main_params_from_ckpt load_optim load_rng most_recent_k no_load_optim no_load_rng
    no_save_optim no_save_rng non_persistent_ckpt_type non_persistent_global_ckpt_dir non_persistent_local_ckpt_algo
    non_persistent_local_ckpt_dir non_persistent_save_interval override_ckpt_iteration pretrained_checkpoint
    replication replication_factor replication_jump save save_activations_interval save_dgrads_interval
    save_interval save_optim save_params_interval save_retain_interval save_rng save_tokenizer_assets
    save_tokens_per_expert_interval save_wgrads_interval stream_ckpt_dequant strict_fsdp_dtensor_load
    use_checkpoint_args use_dist_ckpt use_dist_ckpt_deprecated use_mp_args_from_checkpoint_args
    use_persistent_ckpt_worker use_tokenizer_model_from_checkpoint_args verify_integrity
""")
"""Args on where and how checkpoints are stored and found."""
