"""Fields of TrainConfig that are args of Megatron-LM's, by the same names and with the same meaning."""

SHARED = (
    "seed", "make_vocab_size_divisible_by", "micro_batch_size", "global_batch_size", "rampup_batch_size",
    "train_iters", "train_samples", "lr", "min_lr", "lr_decay_style", "lr_decay_iters", "lr_decay_samples",
    "lr_warmup_iters", "lr_warmup_samples", "lr_warmup_fraction", "lr_warmup_init", "lr_wsd_decay_style",
    "lr_wsd_decay_iters", "lr_wsd_decay_samples", "optimizer", "weight_decay", "weight_decay_incr_style",
    "adam_beta1", "adam_beta2", "adam_eps", "sgd_momentum", "clip_grad", "loss_scale", "initial_loss_scale",
    "min_loss_scale", "loss_scale_window", "hysteresis", "hidden_dropout", "attention_dropout", "mock_data",
    "dataloader_type", "reset_position_ids", "reset_attention_mask", "eod_mask_loss", "save_interval",
)  # fmt: skip
"""Fields that a checkpoint saves as args, and that a resumed run takes from them."""
SAVED = (
    *SHARED,
    "bf16", "fp16", "num_workers", "eval_interval", "eval_iters", "log_interval", "async_save",
    "overlap_grad_reduce", "overlap_param_gather",
)  # fmt: skip
"""Fields that a checkpoint saves as args."""
TAKEN = (
    *SHARED,
    "start_weight_decay", "end_weight_decay", "split", "seq_length", "data_type", "scalar_loss_mask",
    "variable_seq_lengths",
)  # fmt: skip
"""Fields that a resumed run takes from args."""
