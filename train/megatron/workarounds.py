"""Faults of megatron-core that mconv works around without changing it: rows as in `patches`."""

from functools import partial

from mconv.train.megatron.patches import ALL, ISSUES, NONE, CorePatch

_row = partial(CorePatch, versions=ALL, upstream=NONE)
_DISTRIBUTED = "megatron.core.optimizer.distrib_optimizer.DistributedOptimizer"
_OPTIMIZER = "mconv.train.optim.optimizer"
_GROUPS = "mconv.train.megatron.parallel"
_LAYER = "megatron.core.transformer.transformer_layer.TransformerLayer"
_ROTARY = "megatron.core.models.common.embeddings.rotary_pos_embedding.RotaryEmbedding"

OPTIMIZER = (
    _row(
        symbol=f"{_DISTRIBUTED}.state_dict",
        wrong="reads `step` of torch's Adam, which has no state before its first step: an AssertionError at a load, and "
        "at a save if every step so far was skipped",
        until="a new optimizer without Transformer Engine and Apex has a state_dict()",
        where=f"{_OPTIMIZER}:_make_state",
        signatures=("(self)",),
    ),
    _row(
        symbol=f"{_DISTRIBUTED}.load_state_dict",
        wrong="gives all parameters one `step` tensor, which torch's Adam counts up once for each of them",
        until="two parameters have counters of their own after a load",
        where=f"{_OPTIMIZER}:set_step",
        signatures=("(self, state_dict)",),
    ),
    _row(
        symbol=f"{_DISTRIBUTED}._set_main_param_and_optimizer_states",
        wrong="copies every key of Adam's state out of a checkpoint, which has no `step` per parameter: a KeyError",
        until="it takes tensors without `step`",
        where="mconv.train.megatron.optimizer:let_step_through",
        signatures=("(self, model_param, tensors)",),
    ),
    _row(
        symbol=f"{_DISTRIBUTED}._get_model_param_range_map",
        wrong="nothing; it alone says which elements of a parameter a replica keeps",
        until="a public name says it",
        where="mconv.train.megatron.optimizer:kept_slice",
        signatures=("(self, param)",),
    ),
    _row(
        symbol="megatron.core.optimizer.get_megatron_optimizer",
        wrong="leaves `init_state_fn` None for SGD, and the optimizer calls it all the same",
        until="the optimizer for SGD has an `init_state_fn`",
        where=f"{_OPTIMIZER}:make_optimizer",
        signatures=(
            "(config, model_chunks, config_overrides=, use_gloo_process_groups=, pg_collection=, "
            "dump_param_to_param_group_map=)",
        ),
    ),
    _row(
        symbol="megatron.core.optimizer.clip_grads.clip_grad_by_total_norm_fp32",
        wrong="copies each gradient to scale it where Apex is not installed; and the whole step shows no norm before it "
        "changes the weights",
        until="its peak of memory is that of the gradients",
        where=f"{_OPTIMIZER}:clip_and_step",
        signatures=("(parameters, max_norm, total_norm, use_decoupled_grad=)",),
    ),
    _row(
        symbol="megatron.core.distributed.finalize_model_grads",
        wrong="divides by a count of tokens in int32, in which weights of tokens such as 0.1 cannot be told",
        until="the schedules add up tokens in a floating-point type",
        where="mconv.train.optim.per_token_loss:PerTokenLoss",
        signatures=("(model, num_tokens=, pg_collection=, force_all_reduce=)",),
    ),
)

PARALLEL = (
    _row(
        symbol="megatron.core.parallel_state.destroy_model_parallel",
        wrong="forgets its groups, and leaves their sockets and threads behind, dozens a layout",
        upstream=f"{ISSUES}6897",
        until="torch.distributed has no group but the world's after it",
        where=f"{_GROUPS}:_destroy_groups",
        signatures=("()",),
    ),
    _row(
        symbol="megatron.core.parallel_state.create_group",
        wrong="makes a gloo group for each of some forty sets of ranks, most of which are the same few; each has a "
        "thread that wakes a hundred times a second",
        until="a layout on gloo has no more groups than different sets of ranks",
        where=f"{_GROUPS}:_one_group_a_set",
        signatures=("(ranks=, timeout=, backend=, pg_options=, use_local_synchronization=, group_desc=)",),
    ),
)

MODEL = (
    _row(
        symbol=f"{_ROTARY}.__init__",
        wrong="knows llama3's scaling with its factor alone: the other three numbers are fixed at 1, 4 and 8192",
        upstream=f"{NONE}; {ISSUES}6305 is about the factor on Megatron-LM's command line",
        until="it takes original_max_position_embeddings",
        where="mconv.train.model.rope:inverse_frequencies",
        signatures=(
            "(self, kv_channels, rotary_percent, rotary_interleaved=, seq_len_interpolation_factor=, rotary_base=, "
            "rope_scaling=, rope_scaling_factor=, use_cpu_initialization=, cp_group=)",
        ),
    ),
    _row(
        symbol=f"{_ROTARY}.forward",
        wrong="counts positions from 0 in each row; documents that share a row begin anew",
        until="it takes positions",
        where="mconv.train.model.boundaries:rope_at",
        signatures=("(self, max_seq_len, offset=, packed_seq=, cp_group=)",),
    ),
    _row(
        symbol="megatron.core.models.common.embeddings.language_model_embedding.LanguageModelEmbedding.__init__",
        wrong="makes position embeddings in fp32, whatever params_dtype is",
        until="they are of params_dtype",
        where="mconv.train.model.engine:_set_positions",
        signatures=(
            "(self, config, vocab_size, max_sequence_length, position_embedding_type=, num_tokentypes=, "
            "scatter_to_sequence_parallel=, tp_group=)",
        ),
    ),
    _row(
        symbol="megatron.core.models.common.language_module.language_module.LanguageModule.compute_language_model_loss",
        wrong="counts padded columns of the vocabulary in, so that the loss moves with the padding, and with it with tp",
        until="padded columns do not change a loss",
        where="mconv.train.model.loss:TrueVocabLoss",
        signatures=("(self, labels, logits)",),
    ),
    _row(
        symbol="megatron.core.tensor_parallel.checkpoint",
        wrong="recomputes only if its input asks for a gradient: behind a frozen embedding the weights in it get none",
        until="what it returns asks for a gradient where only a weight does",
        where="mconv.train.model.recompute:let_gradients_through",
        signatures=("(function, distribute_saved_activations, *args)",),
    ),
    _row(
        symbol=f"{_LAYER}._forward_mlp",
        wrong="recomputes an MLP together with its bias, a parameter: the backward pass then never ends",
        until="what is recomputed may hand on a parameter that it has not changed",
        where="mconv.train.model.recompute:_again",
        signatures=(
            "(self, hidden_states, inference_context=, padding_mask=)",
            "(self, hidden_states, inference_context=, padding_mask=, packed_seq_params=)",
        ),
    ),
    _row(
        symbol="megatron.core.transformer.torch_norm.WrappedTorchNorm.__new__",
        wrong="refuses sequence parallelism, for want of a mark on its weight",
        upstream=f"{ISSUES}1448",
        until="it can be made under sequence parallelism",
        where="mconv.train.model.attention:RMSNorm",
        signatures=("(cls, config, hidden_size, eps=, persist_layer_norm=, zero_centered_gamma=, normalization=)",),
    ),
    _row(
        symbol="megatron.core.transformer.dot_product_attention.DotProductAttention.__init__",
        wrong="keeps every score of every head; its fused one needs Transformer Engine",
        until="it calls torch's scaled_dot_product_attention",
        where="mconv.train.model.attention:CoreAttention",
        signatures=(
            "(self, config, layer_number, attn_mask_type, attention_type, attention_dropout=, softmax_scale=, "
            "cp_comm_type=, pg_collection=)",
        ),
    ),
    _row(
        symbol="megatron.core.models.gpt.gpt_layer_specs.get_gpt_layer_local_spec",
        wrong="says an MLP in another way from 0.18 on, and asks for an activation that is a module",
        until="0.17 is no longer supported",
        where="mconv.train.megatron.specs:set_mlp",
        signatures=(
            "(num_experts=, moe_grouped_gemm=, qk_layernorm=, multi_latent_attention=, fp8=, "
            "moe_use_legacy_grouped_gemm=, normalization=, qk_l2_norm=, use_kitchen=, use_kitchen_attention=, "
            "kitchen_attention_backend=)",
            "(num_experts=, moe_grouped_gemm=, qk_layernorm=, multi_latent_attention=, fp8=, normalization=, "
            "qk_l2_norm=, use_kitchen=, use_kitchen_attention=, kitchen_attention_backend=)",
        ),
    ),
    _row(
        symbol="megatron.core.models.gpt.GPTModel.shared_embedding_or_output_weight",
        wrong="takes hold of a tied weight before a layer-by-layer run has fetched it",
        until="the head is called with no weight of its own",
        where="mconv.verify.models.megatron:Megatron",
        signatures=("(self)",),
    ),
)

CHECKPOINTS = (
    _row(
        symbol="megatron.core.dist_checkpointing.load",
        wrong="stretches or cuts an embedding of another padding in silence (`allow_shape_mismatch`)",
        until="an embedding's sharded tensor does not allow another shape",
        where="mconv.train.model.loading:_check_shapes",
        signatures=(
            "(sharded_state_dict, checkpoint_dir, sharded_strategy=, common_strategy=, validate_access_integrity=, "
            "strict=)",
            "(sharded_state_dict, checkpoint_dir, sharded_strategy=, common_strategy=, validate_access_integrity=, "
            "strict=, verify_integrity=)",
            "(sharded_state_dict, checkpoint_dir, sharded_strategy=, validate_access_integrity=, strict=, "
            "verify_integrity=, process_group=)",
        ),
    ),
    _row(
        symbol=f"{_DISTRIBUTED}.sharded_state_dict",
        wrong="leaves Adam's counter out at 0, when every step was skipped; and names the state of all layers as one "
        "tensor, where layers without a gradient have none to give",
        until="a run whose steps were all skipped, and one with frozen layers, resume without these two",
        where="mconv.train.checkpoints.checkpoint:_a_layer_apart",
        signatures=("(self, model_sharded_state_dict=, is_loading=, sharding_type=, metadata=)",),
    ),
)

DATA = (
    _row(
        symbol="megatron.core.datasets.blended_dataset.BlendedDataset.__init__",
        wrong="may draw more samples of a prefix than have been made, where many are blended to few",
        upstream=f"{ISSUES}705",
        until="no blend draws more of a prefix than its share, rounded up",
        where="mconv.train.data.dataset:_surplus",
        signatures=("(self, datasets, weights, size, config)",),
    ),
    _row(
        symbol="megatron.core.datasets.indexed_dataset._FileBinReader.read",
        wrong="takes what a single read gives, and leaves the rest of its array as it was",
        until="it raises an error at the end of a file that was cut short",
        where="mconv.train.data.index:Tokens",
        signatures=("(self, dtype, count, offset)",),
    ),
)

WORKAROUNDS = OPTIMIZER + PARALLEL + MODEL + CHECKPOINTS + DATA
