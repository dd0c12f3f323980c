"""Option names of other programs: mconv's name for each, how to convert its value, or why there is none."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Values = Mapping[str, Any]
"""All values that the file or the command line sets, by name."""

RENAMED = {
    "tensor_model_parallel_size": "tp", "pipeline_model_parallel_size": "pp",
    "num_virtual_stages_per_pipeline_rank": "vpp", "virtual_pipeline_model_parallel_size": "vpp",
    "use_distributed_optimizer": "distributed_optimizer", "data_path": "data", "train_data_path": "train_data",
    "valid_data_path": "valid_data", "test_data_path": "test_data", "data_cache_path": "data_cache",
    "ckpt_step": "iteration", "load_iters": "iteration", "eod_token_id": "eod_token", "rope_theta": "rotary_base",
    "true_vocab_size": "vocab_size", "trigger_path": "trigger_dir",
    "learning_rate": "lr", "max_steps": "train_iters", "output_dir": "save", "out": "save",
    "model_name_or_path": "load", "max_grad_norm": "clip_grad", "adam_epsilon": "adam_eps",
    "warmup_steps": "lr_warmup_iters", "save_steps": "save_interval", "save_total_limit": "keep_last",
    "logging_steps": "log_interval", "eval_steps": "eval_interval", "dataloader_num_workers": "num_workers",
    "max_seq_length": "seq_length", "lora_r": "lora_rank", "target_modules": "lora_targets",
    "lora_target_modules": "lora_targets",
}  # fmt: skip
"""Same meaning and same unit: of Megatron-LM and its forks, then of transformers' Trainer, TRL and PEFT."""
CONVERTED = {
    "num_layers_per_virtual_pipeline_stage": "it counts layers, and {vpp} counts chunks: with L layers on {pp} P, N "
    "layers in a chunk are {vpp} L/(P*N)",
    "save_retain_interval": "N is {keep_every} N with {keep_last} 1: the newest checkpoint stays, too",
    "recompute_activations": "it is {recompute_granularity} selective",
    "gradient_checkpointing": "it is {recompute_granularity} full; selective recomputes less",
    "use_flash_attn": "not needed: on a GPU torch's attention is flash attention; {attention_backend} chooses another",
    "transformer_impl": "only attention can run in Transformer Engine: {attention_backend} transformer_engine; other "
    "layers are megatron-core's own",
    "group_query_attention": "{num_query_groups} alone turns it on, where a model is made from scratch",
    "per_device_train_batch_size": "it is {micro_batch_size}; {global_batch_size} also counts replicas and accumulation: "
    "per-device batch x replicas x accumulation steps",
    "gradient_accumulation_steps": "it follows from {global_batch_size}, which is {micro_batch_size} x replicas x "
    "accumulation steps",
    "per_device_eval_batch_size": "evaluation uses {micro_batch_size}, too",
    "warmup_ratio": "it is {lr_warmup_fraction}, a share of {lr_decay_iters}, which is {train_iters} if not given",
    "lr_scheduler_type": "it is {lr_decay_style}: linear and cosine are spelled alike, constant_with_warmup is constant "
    "with {lr_warmup_iters}, inverse_sqrt is inverse-square-root, warmup_stable_decay is WSD",
    "optim": "it is {optimizer}: adamw_torch and adamw_torch_fused are adam, which is AdamW; sgd is sgd with momentum",
    "num_train_epochs": "a run's length is {train_iters} or {train_samples}: one epoch has as many samples as the data "
    "has tokens / {seq_length}; of conversations, as many as there are rows",
    "resume_from_checkpoint": "the same command with the same {save} continues its run; {load} with {resume} continues "
    "another one",
    "eval_strategy": "{eval_interval} evaluates every so many iterations; 0 never does",
    "evaluation_strategy": "{eval_interval} evaluates every so many iterations; 0 never does",
    "save_strategy": "{save_interval} saves every so many iterations; 0 saves only at the end",
    "report_to": "{wandb_project} or {tensorboard_dir} turns one on",
    "wandb_logger": "{wandb_project} is enough",
    "manual_gc": "it is {manual_gc_interval} N, which collects garbage every N iterations",
    "no_check_for_nan_in_loss_and_grad": "losses and gradients are always checked; {on_nan} says what follows",
    **dict.fromkeys(
        ("profile_step_start", "profile_step_end"),
        "{profile} names the first and the last iteration, counted from 1: Megatron-LM's 10 and 12 are 11-12",
    ),
    "use_pytorch_profiler": "{profile_with} torch, which is the default; nsys is the other one",
    **dict.fromkeys(
        ("nnodes", "num_nodes"),
        "a command starts the ranks of one machine, {nproc_per_node} of them; torchrun or srun starts more machines, and "
        "`mconv plan --world-size` counts the GPUs of all",
    ),
    **dict.fromkeys(
        ("precision", "mixed_precision", "dtype", "torch_dtype", "params_dtype"),
        "it is one of {bf16}, {fp16} and {fp32}; without one, a run uses the dtype of its weights",
    ),
}  # fmt: skip
"""Another unit or another meaning: how to say it here. Braces hold fields."""
_FROM_MODEL = "it is part of the model: the checkpoint, preset or config.json says it"
_TOKENIZER = "not needed: the tokenizer's files are beside the checkpoint and recorded with the data"
_NEEDS_FUSED = "it needs gradients that are accumulated by Apex's fused kernel"
_ALL_LOGGED = "TensorBoard has all that the log file has"
_ALWAYS_CORE = "models are always megatron-core's"
NEEDLESS = {
    "use_checkpoint_args": "the model always comes from the checkpoint; with resume, settings that are not given do too",
    "use_mcore_models": _ALWAYS_CORE, "use_legacy_models": _ALWAYS_CORE,
    "use_checkpoint_opt_param_scheduler": "with resume the schedule comes from the checkpoint where it is not given",
    "override_opt_param_scheduler": "what is given always counts; with resume each difference from the run is printed",
    "no_load_optim": "finetune takes the weights alone and begins at iteration 0",
    "no_load_rng": "a resumed run of another program starts its random generators anew; finetune always does",
    "exit_signal_handler": "signals always save and stop",
    "no_gradient_accumulation_fusion": "gradients are never accumulated by Apex's fused kernel",
    "exit_on_missing_checkpoint": "a load without a checkpoint always stops",
    "ckpt_format": "checkpoints are torch_dist; mconv reshard writes others",
    "use_dist_ckpt": "checkpoints are torch_dist; mconv reshard writes others",
    "untie_embeddings_and_output_weights": _FROM_MODEL, "swiglu": _FROM_MODEL, "normalization": _FROM_MODEL,
    "use_rotary_position_embeddings": _FROM_MODEL, "disable_bias_linear": _FROM_MODEL, "add_qkv_bias": _FROM_MODEL,
    "tokenizer_type": _TOKENIZER, "tokenizer_model": _TOKENIZER, "vocab_file": _TOKENIZER, "merge_file": _TOKENIZER,
    "wandb_api_key": "the key is read from WANDB_API_KEY, or from W&B's own login",
    "distributed_backend": "it is NCCL with GPUs and gloo without",
    "context_parallel_size": "context parallelism is not supported",
    "use_precision_aware_optimizer": "moments and main weights are fp32; Transformer Engine's optimizer is not used",
    "main_grads_dtype": "gradients are accumulated in fp32",
    "defer_embedding_wgrad_compute": _NEEDS_FUSED, "wgrad_deferral_limit": _NEEDS_FUSED,
    "overlap_p2p_communication_warmup_flush": "interleaved stages exchange while they compute, but in warmup and flush",
    "cross_entropy_loss_fusion": "the loss is mconv's own cross entropy over the vocabulary's shards",
    "num_dataset_builder_threads": "index files are built by one thread",
    "log_progress": "progress.txt is always written", "log_memory_to_tensorboard": _ALL_LOGGED,
    "no_log_loss_scale_to_tensorboard": _ALL_LOGGED, "rope_scaling_factor": _FROM_MODEL, "use_rope_scaling": _FROM_MODEL,
    "expert_model_parallel_size": "expert parallelism is not supported",
}  # fmt: skip
"""Not needed here, or not offered."""


def advice(name: str, given: Values | None = None) -> str | None:
    """Return what to do about a name of another program, or None if no table has it.

    A name with dashes before it is answered with flags, any other with fields. `given`: the values set beside it (and its
    own), for arithmetic with numbers.
    """
    spelled, name = _Spelled(flags=name.startswith("--")), name.lstrip("-").partition("=")[0].replace("-", "_")
    if name in RENAMED:
        return f"here it is {spelled[RENAMED[name]]}"
    if name == LAYERS_IN_A_CHUNK and (counted := _chunks(given or {}, spelled)):
        return counted
    return CONVERTED[name].format_map(spelled) if name in CONVERTED else NEEDLESS.get(name)


class _Spelled(dict[str, str]):
    """A field's name -> how the user types it: a flag, or the field."""

    def __init__(self, *, flags: bool) -> None:
        self.flags = flags

    def __missing__(self, field: str) -> str:
        return f"--{field.replace('_', '-')}" if self.flags else field


LAYERS_IN_A_CHUNK = "num_layers_per_virtual_pipeline_stage"


def _chunks(given: Values, spelled: _Spelled) -> str | None:
    """Return the number of chunks that so many layers in each make, or None where a number is not known."""
    layers, numbers = _layers(given), [_number(given.get(name)) for name in (LAYERS_IN_A_CHUNK, "pp")]
    each, pp = numbers[0], numbers[1] or _number(given.get("pipeline_model_parallel_size"))
    if not (layers and each and pp):
        return None
    text = f"it counts layers, and {spelled['vpp']} counts chunks: {layers} layers on {spelled['pp']} {pp}"
    if layers % (pp * each):
        return f"{text} cannot be divided into chunks of {each}"
    return f"{text} with {each} in a chunk are {spelled['vpp']} {layers // (pp * each)}"


def _number(value: Any) -> int:
    return int(value) if str(value).isdecimal() else 0


def _layers(given: Values) -> int:
    """Return the number of layers of the model, or 0 where neither the values nor a config.json say it."""
    if own := _number(given.get("num_layers")):
        return own
    for name in ("model", "load"):
        path = Path(str(given.get(name)))
        try:
            values = json.loads((path if path.is_file() else path / "config.json").read_text())
            return next((_number(values[key]) for key in ("num_hidden_layers", "n_layer") if key in values), 0)
        except (OSError, ValueError, TypeError):
            continue
    return 0
