"""Names that people bring from other programs: what each is called here, or why there is none."""

RENAMED = {
    "tensor_model_parallel_size": "tp", "pipeline_model_parallel_size": "pp",
    "num_layers_per_virtual_pipeline_stage": "vpp", "num_virtual_stages_per_pipeline_rank": "vpp",
    "use_distributed_optimizer": "distributed_optimizer", "data_path": "data", "train_data_path": "train_data",
    "valid_data_path": "valid_data", "test_data_path": "test_data", "data_cache_path": "data_cache",
    "ckpt_step": "iteration", "load_iters": "iteration", "recompute_activations": "recompute_granularity",
    "eod_token_id": "eod_token", "use_flash_attn": "attention_backend", "transformer_impl": "attention_backend",
    "group_query_attention": "num_query_groups", "rope_theta": "rotary_base",
    "true_vocab_size": "vocab_size", "save_retain_interval": "keep_every",
    "learning_rate": "lr", "max_steps": "train_iters", "output_dir": "save", "out": "save",
    "model_name_or_path": "load", "per_device_train_batch_size": "micro_batch_size", "max_grad_norm": "clip_grad",
    "warmup_steps": "lr_warmup_iters", "lr_scheduler_type": "lr_decay_style", "save_steps": "save_interval",
    "logging_steps": "log_interval", "eval_steps": "eval_interval",
}  # fmt: skip
"""Of Megatron-LM and its descendants, then of transformers' Trainer."""
_FROM_MODEL = "it is part of the model: a checkpoint, a preset or a config.json says it"
_TOKENIZER = "the tokenizer goes with the checkpoint and with the data; none is named"
NEEDLESS = {
    "use_checkpoint_args": "the architecture always comes from the checkpoint",
    "use_checkpoint_opt_param_scheduler": "a run that is gone on with always has its own schedule's position",
    "finetune": "load alone begins anew; with resume it goes on",
    "no_load_optim": "load alone begins anew; with resume it goes on",
    "no_load_rng": "load alone begins anew; with resume it goes on",
    "exit_signal_handler": "signals always save and stop",
    "ckpt_format": "checkpoints are torch_dist; mconv reshard writes others",
    "use_dist_ckpt": "checkpoints are torch_dist; mconv reshard writes others",
    "gradient_accumulation_steps": "micro batches are counted: global_batch_size / (micro_batch_size x replicas)",
    "untie_embeddings_and_output_weights": _FROM_MODEL, "swiglu": _FROM_MODEL, "normalization": _FROM_MODEL,
    "use_rotary_position_embeddings": _FROM_MODEL, "disable_bias_linear": _FROM_MODEL, "add_qkv_bias": _FROM_MODEL,
    "tokenizer_type": _TOKENIZER, "tokenizer_model": _TOKENIZER, "vocab_file": _TOKENIZER, "merge_file": _TOKENIZER,
    "wandb_logger": "wandb_project is enough",
    "wandb_api_key": "the key is W&B's own affair: WANDB_API_KEY, or its login",
    "num_train_epochs": "the length of a run is train_iters or train_samples",
    "context_parallel_size": "context parallelism is not offered",
    "expert_model_parallel_size": "expert parallelism is not offered",
}  # fmt: skip
"""What needs no field, or has none."""


def advice(name: str) -> str | None:
    """What to do about a name of another program's; None for one that is of none that we know."""
    flag, name = name.startswith("--"), name.lstrip("-").partition("=")[0].replace("-", "_")
    if name not in RENAMED:
        return NEEDLESS.get(name)
    return f"here it is {'--' + RENAMED[name].replace('_', '-') if flag else RENAMED[name]}"
