"""Option names of other programs: what each is called in each command, or why there is no such option.

The value of a row begins with an option (`--tp`), is a positional parameter (`MODEL`), or is a reason.
"""

from collections.abc import Mapping

from mconv.cli import foreign_launch
from mconv.cli.foreign_data import DATA_ROWS

Rows = Mapping[str, str]
"""Another program's option, without dashes and with underscores -> mconv's option, or a reason."""


def _all(names: str, ours: str) -> dict[str, str]:
    """Return a row for each of `names`, which spaces separate."""
    return dict.fromkeys(names.split(), ours)


_OUTPUTS = (
    "save_dir save save_path output_dir output_folder output_path output out_path out_dir export_dir ckpt_convert_save o"
)
_INPUTS = "load_dir load load_path input_dir input_path input input_folder checkpoint_path ckpt_path ckpt_dir"
_TOKENIZERS = "tokenizer_model tokenizer_type tokenizer_name tokenizer_name_or_path tokenizer_path vocab_file merge_file"
_TOKEN = _all("token hf_token auth_token use_auth_token hub_token", "the token is read from HF_TOKEN or `hf auth login`")
_NO_CODE = _all("trust_remote_code", "code from a model's repository is never run, and is not needed")
_ARCHITECTURE = (
    "num_layers hidden_size ffn_hidden_size num_attention_heads group_query_attention num_query_groups kv_channels "
    "seq_length swiglu normalization norm_epsilon rotary_base rotary_percent use_rope_scaling rope_scaling_factor "
    "position_embedding_type use_rotary_position_embeddings no_position_embedding disable_bias_linear add_qkv_bias "
    "untie_embeddings_and_output_weights window_size qk_layernorm model_type model_size"
)
_READ = "the architecture is read from the checkpoint; --config names a config.json for what the args leave open"
_TP = _all("target_tensor_parallel_size target_tensor_model_parallel_size tensor_model_parallel_size", "--tp")
_PP = _all("target_pipeline_parallel_size target_pipeline_model_parallel_size pipeline_model_parallel_size", "--pp")
_LAYOUT = _TP | _PP | _all(
    "target_expert_parallel_size target_expert_model_parallel_size expert_model_parallel_size "
    "expert_tensor_parallel_size target_expert_tensor_parallel_size", "expert parallelism is not supported",
) | _all("context_parallel_size", "context parallelism does not change a checkpoint")  # fmt: skip
_CHUNKS = {
    "num_virtual_stages_per_pipeline_rank": "--vpp", "virtual_pipeline_model_parallel_size": "--vpp",
    "num_layers_per_virtual_pipeline_stage": "--vpp, which counts chunks per pipeline rank and not layers: the model's "
    "layers / (--pp x the layers per virtual stage)",
}  # fmt: skip
_FORMATS = _all(
    "target_ckpt_format save_ckpt_format ckpt_format ckpt_convert_format dist_ckpt_format use_dist_ckpt", "--format"
) | _all("loader checkpoint_type src_ckpt_format", "the input's format is recognised automatically")
_DTYPES = _all("torch_dtype params_dtype target_params_dtype export_weight_dtype", "--dtype") | {
    "bf16": "--dtype bf16", "fp16": "--dtype fp16", "fp32": "--dtype fp32",
}  # fmt: skip
_CONVERSION = {
    **_DTYPES, **_NO_CODE, **_all(_OUTPUTS, "--out"),
    **_all("force overwrite_ok overwrite_output_dir force_overwrite", "--overwrite"),
    **_all("dryrun submission_dry_run", "--dry-run"),
    **_all("no_checking not_strict strict", "every tensor and config key is always checked"),
    **_all("max_queue_size", "tensors are streamed from file to file; there is no queue"),
    **_all("transformer_impl loader_transformer_impl saver_transformer_impl",
           "a checkpoint loads with either transformer implementation"),
    **_all("device device_map use_cpu_initialization", "conversions run on the CPU without building a model"),
    **_all("num_processes num_workers workers",
           "no workers are needed; under torchrun each rank converts a share"),
    "saver": "hf2meg, reshard and merge write Megatron, meg2hf writes Hugging Face",
}  # fmt: skip
_FROM_MEGATRON = {
    **_all(_INPUTS, "CHECKPOINT"), **_all("ckpt_step load_iters step", "--iteration"),
    **_all("true_vocab_size vocab_true_size", "--vocab-size"),
    **_all("use_checkpoint_args use_mp_args_from_checkpoint_args", "the args are always read from the checkpoint"),
    **_all("no_load_optim no_save_optim no_load_rng no_save_rng use_distributed_optimizer finetune",
           "a conversion carries weights only, no optimizer state"),
    **_all(_ARCHITECTURE, _READ),
}  # fmt: skip
_COPIED = _all(_TOKENIZERS, "the tokenizer's files are copied along with the model")
_MERGED = {"megatron_path": "no Megatron-LM source tree is needed", **_COPIED}
_MODEL = "model_name_or_path pretrained_model_name_or_path hf_model hf_model_id hf_ckpt_path hf_path"

HF2MEG = {
    **_CONVERSION, **_LAYOUT, **_CHUNKS, **_FORMATS, **_MERGED, **_TOKEN,
    **_all(_ARCHITECTURE, "the architecture is read from the model's config.json"),
    **_all(f"{_INPUTS} {_MODEL}", "MODEL"), "model_path": "--from", "local_files_only": "--offline",
    "megatron_path": "the checkpoint to make is --out; no Megatron-LM source tree is needed",
    "true_vocab_size": "the vocabulary size is read from the model's config.json",
    **_all("transformers_cache huggingface_cache", "--cache-dir"),
    **_all("revision model_revision",
           "a repository's main branch is read; `mconv pull REPO OUT --revision` fetches another"),
}  # fmt: skip
RESHARD = {**_CONVERSION, **_LAYOUT, **_CHUNKS, **_FORMATS, **_MERGED, **_FROM_MEGATRON}
MERGE = {
    **_CONVERSION, **_FORMATS, **_MERGED, **_FROM_MEGATRON,
    **dict.fromkeys([*_DTYPES], "merge keeps the dtype; `mconv reshard --tp 1 --pp 1 --dtype` casts"),
    **dict.fromkeys([*_LAYOUT, *_CHUNKS, "tp", "pp", "vpp"],
                    "merge makes one rank; `mconv reshard --tp --pp` makes others"),
    "allow_nonfinite": "`mconv reshard --tp 1 --pp 1 --allow-nonfinite` merges weights that hold NaN or infinity",
}  # fmt: skip
MEG2HF = {
    **_CONVERSION, **_FROM_MEGATRON, **_all(_TOKENIZERS, "--tokenizer, a folder with the tokenizer's files"),
    **_all("hf_path hf_output_path", "--out"), "megatron_path": "CHECKPOINT",
    **_all("model model_name hf_model hf_model_id", _READ),
    **_all("num_output_shards out_shard_size shard_size", "--max-shard-size, in GB"),
    **_all("safe_serialization save_safetensors unsafe", "weights are always written as safetensors"),
    **_all("vocab_extra_ids vocab_extra_ids_list override_special_tokens no_new_tokens",
           "no token is added; --tokenizer takes a folder whose tokenizer has them"),
    **dict.fromkeys([*_LAYOUT, *_CHUNKS, "tp", "pp", "vpp"], "any layout is read as it is, without a merge"),
    **_all("convert_checkpoint_from_megatron_to_transformers", "it is what meg2hf does"),
}  # fmt: skip
_MERGEKIT = {
    **_all("cuda gpu_rich low_cpu_memory read_to_gpu multi_gpu", "it runs on the CPU and holds no model in memory"),
    **_all("num_threads j async_write write_threads", "all cores read, compute and write; there is nothing to set"),
    **_all("lazy_unpickle", "tensors are always read slab by slab, and pickles without running their code"),
    **_all("transformers_cache lora_merge_cache", "models are read where they are, repositories in HF_HOME"),
    **_all("clone_tensors", "each layer of the result has tensors of its own"),
    **_all("write_model_card no_write_model_card", "the card is written by `mconv push`"),
    **_all("verbosity v quiet", "progress is shown on a terminal, and nothing in a pipe"),
}  # fmt: skip
"""The options that all of mergekit's programs share."""
_MADE = {
    **{name: ours for name, ours in _CONVERSION.items() if name != "saver"}, **_TP, **_PP, **_FORMATS, **_MERGEKIT,
    **_all("copy_tokenizer no_copy_tokenizer", "the tokenizer's files are copied along with the model"),
    **_all("save_safetensors", "weights are always written as safetensors"),
}  # fmt: skip
_SURGERY = {
    **_MADE,
    **_all(f"{_INPUTS} {_MODEL} model_path model_dir", "MODEL"), **_all("ckpt_step load_iters step", "--iteration"),
}  # fmt: skip
BLEND = {
    **_MADE, **_all(f"{_INPUTS} {_MODEL} model models config_file recipe merge_inputs checkpoints", "MODELS"),
    **_all("merge_method", "--method"), **_all("base_model", "--base"), **_all("weight", "--weights"),
    **_all("random_seed coefficient_seed", "--seed"),
    **_all("allow_crimes", "--allow-different, which names what may differ"),
    **_all("unsafe_truncate_embeddings", "`mconv resize MODEL --vocab-size` makes vocabularies agree"),
    **_all("lora_merge_dtype", "an adapter is merged in fp64 and rounded once"),
    **_all("out_shard_size shard_size", "--max-shard-size, in GB"),
    **_all("copy_tokenizer no_copy_tokenizer tokenizer_source",
           "the base's tokenizer is copied, or the first model's; --tokenizer names another folder"),
    **_all("normalize lambda gamma epsilon rescale int8_mask filter_wise select_topk", "--set NAME=VALUE"),
    # Megatron-LM's tools/checkpoint/weighted_merge.py, for checkpoints of a run
    "merge_output": "--out", "merge_save_dtype": "--dtype", "overwrite_merge_output": "--overwrite",
    "merge_preflight_only": "--dry-run", "verify_load": "`mconv verify OUT` judges what was written",
    **_all("start_checkpoint end_checkpoint merge_window_btoks min_iteration_interval",
           "--last, or --iterations, which lists them"),
    **_all("merge_style", "--weights uniform, linear or exponential, or a list"),
    **_all("output_iteration", "the result is a release: it is no point of a run"),
    **_all("merge_execution_mode merge_streaming_chunk_bytes merge_max_projected_cpu_bytes merge_template_init_mode",
           "tensors are always streamed; --dry-run says what is needed"),
}  # fmt: skip
LAYERS = {
    **_SURGERY, **_all("layer_range layers keep_layers layers_to_keep", "--keep"),
    **_all("drop drop_layers prune_layers layers_to_drop", "--keep, which lists the layers that stay"),
    **_all("num_layers num_hidden_layers", "--toy, or --keep with the layers by their numbers"),
    **_all("tie_word_embeddings", "--tie"), **_all("untie_embeddings_and_output_weights", "--untie"),
}  # fmt: skip
RESIZE = {
    **_SURGERY, **_all(_TOKENIZERS, "--tokenizer, a folder with the tokenizer's files"),
    **_all("true_vocab_size vocab_true_size new_num_tokens padded_vocab_size", "--vocab-size"),
    **_all("vocab_extra_ids_list add_tokens new_tokens additional_special_tokens", "--tokens"),
    **_all("vocab_extra_ids", "--tokens, which takes the tokens by name"),
    **_all("mean_resizing", "--init mean, which is what is done if nothing is said"),
    **_all("approximation_method", "--init mean, normal, zeros, copy:TOKEN or subword-mean"),
    "subword_method": "--init subword-mean", "new_vocab_noise": "--init normal", "random_seed": "--seed",
    **_all("prefix_match byte_match magikarp", "a token keeps its row where the other tokenizer has the same string"),
    **_all("k cosine_similarity weight_scheme new_vocab_scale batch_size",
           "new rows are not sought among similar ones; --init says what they are"),
    **_all("donor donor_model donor_tokenizer", "--tokenizer, a folder with the donor's tokenizer"),
    **_all("pad_to_multiple_of", "--make-vocab-size-divisible-by, of a Megatron checkpoint"),
}  # fmt: skip
VERIFY = {
    **_TP, **_PP, **_NO_CODE, **_all("torch_dtype params_dtype", "--dtype"),
    "bf16": "--dtype bf16", "fp16": "--dtype fp16",
    **_all(f"{_INPUTS} {_MODEL} megatron_path model model_name model_path reference candidate",
           "both checkpoints are given by position: mconv verify REFERENCE CHECKPOINT"),
    **_all("cache_dir huggingface_cache", "HF_HOME says where the Hub's cache is"),
    **_all("huggingface_device baseline_device our_device", "--device"),
    **_all("tolerance atol rtol threshold max_error", "the tolerance is measured for each pair"),
    **_all("check_eq_hf test_logits", "--logits"), **_all("seq_length max_length", "--length"),
    **_all("micro_batch_size batch_size eval_batch_size", "--batch"), "true_vocab_size": "--vocab-size",
    **_all("ckpt_step load_iters", "--iteration"), **_all("output_dir save_dir report", "--html"),
    **_all("model_size num_layers hidden_size use_checkpoint_args", "the architecture is read from the checkpoints"),
    **_all(f"data_path {_TOKENIZERS}", "not needed: the probe is random ids, and text if there is a tokenizer"),
    "max_new_tokens": "--generate",
}  # fmt: skip
INSPECT = {
    **_all(f"{_INPUTS} {_MODEL} megatron_path model model_path", "PATH"), **_TP, **_PP, **_CHUNKS, **_NO_CODE,
    **_all("ckpt_step load_iters", "--iteration"), "true_vocab_size": "--vocab-size", "verbose": "--tensors",
    **_all(_OUTPUTS, "--plot is the only file that inspect writes; --json prints for programs"),
}  # fmt: skip
PUSH = {
    **_TOKEN, **_NO_CODE, **_all("repo_id hub_model_id hf_repo_name repo_name hub_repo", "REPO"),
    **_all(f"{_INPUTS} {_MODEL} local_path folder_path model_dir model model_path", "FOLDER"),
    **_all("hub_private_repo", "--private"), **_all("public no_private", "a repository is public without --private"),
    **_all("branch", "--revision"), "delete": "--overwrite", **_all("dryrun", "--dry-run"),
    **_all("path_in_repo", "files are put into the top folder of the repository"),
    **_all("repo_type", "only model repositories are made"),
    **_all("include exclude allow_patterns ignore_patterns", "all files of the model are sent; --dry-run lists them"),
    **_all("commit_message commit_description create_pr every", "a push is one commit, whose message mconv writes"),
    **_all("torch_dtype dtype bf16 fp16", "weights are sent unchanged; `mconv meg2hf --dtype` casts them"),
    **_all("max_shard_size", "files are sent unchanged; `mconv meg2hf --max-shard-size` sets their size"),
    **_all("unsafe safe_serialization", "weights are always safetensors"),
    **_all("output_folder output_dir", "FOLDER is sent unchanged; no second copy is written"),
    **_all("rope_scaling_type rope_scaling_factor", "config.json is sent unchanged, its rope scaling too"),
    **_all("quiet", "in a pipe only the result is printed"), **_all("y", "--yes"),
}  # fmt: skip
PULL = {
    **_TOKEN, **_all("repo_id model model_name_or_path hub_model_id", "REPO"),
    **_all("local_dir output_dir cache_dir save_dir output out_path", "OUT"),
    **_all("model_revision branch", "--revision"), **_all("repo_type", "only models are fetched"),
    **_all("include exclude allow_patterns ignore_patterns", "all files of the model are fetched"),
    **_all("resume_download resume", "a pull that was interrupted is always resumed"),
    **_all("force_download", "complete files are kept; remove OUT to fetch all of them again"),
    **_all("local_dir_use_symlinks max_workers quiet", "not needed: files are written to OUT itself"),
    **_all("dry_run", "there is none; `mconv inspect` shows what was fetched"),
}  # fmt: skip
_ADAPTER = {
    **_all("base_model base_model_name_or_path model_name_or_path base_model_path pretrained_model_name_or_path",
           "--base"),
    **_all(_OUTPUTS, "--out"), **_all("ckpt_step load_iters", "--iteration"), **_NO_CODE,
    **_all("safe_serialization", "weights are always written as safetensors"),
}  # fmt: skip
_ADAPTERS = "adapter_name_or_path peft_model peft_model_path lora_weights lora_path lora_model adapter_path load load_dir"
LORA_EXPORT = {name: ours for name, ours in _ADAPTER.items() if name != "base_model"} | _all(_ADAPTERS, "RUN")
LORA_MERGE = {
    **_ADAPTER, **_DTYPES, **_FORMATS, **_TP, **_PP, **_all(_ADAPTERS, "ADAPTER"),
    **_all("scaling weight lora_scale", "the scale is the adapter's own alpha / rank"), **_all("dryrun", "--dry-run"),
    **_all("export_size", "--max-shard-size, in GB"),
}  # fmt: skip
LORA_EXTRACT = {
    **_all(_OUTPUTS, "--out"), **_all("max_rank r lora_rank lora_r", "--rank"), **_NO_CODE,
    **_all("model finetuned_model tuned_model model_path fine_tuned_model", "TUNED"),
    **_all("base_model_name_or_path base_model_path pretrained_model_name_or_path", "BASE"),
    **_all("modules target lora_target_modules include_regex i", "--target-modules"), **_MERGEKIT,
    **_all("exclude_regex e", "--target-modules, which lists what gets an adapter"),
    **_all("skip_undecomposable", "nothing but linears gets an adapter; what else differs is listed"),
    "device": "it runs on the CPU", "random_seed": "--seed",
    **_all("copy_tokenizer no_copy_tokenizer", "an adapter has the base's tokenizer"),
    **_all("lora_merge_dtype torch_dtype dtype", "the adapter is fp32, as PEFT trains it"),
    **_all("sv_epsilon", "--energy is the share that is kept; what is far below the largest value is left out"),
    **_all("distribute_scale", "the root of each singular value is in both factors"), "dryrun": "--dry-run",
    **_all("safe_serialization", "weights are always written as safetensors"),
    **_all("embed_lora save_module", "embeddings and norms get no adapter; what differs there is listed"),
}  # fmt: skip
DIFF = {
    **_NO_CODE, **_all(f"{_INPUTS} {_MODEL} model model_path reference candidate base_model", "A"),
    **_all("output_dir save_dir report", "--html"), **_all("n topk top_k", "--top"), "true_vocab_size": "--vocab-size",
    **_all("ckpt_step load_iters", "--iteration"),
    **_all("tolerance atol rtol threshold", "it measures; `mconv verify` decides"),
}  # fmt: skip
PLOT = {
    **_all("logdir log_dir tensorboard_dir save save_dir input file files load", "RUNS"),
    **_all("output output_path output_dir out_path o", "--out"), **_all("smoothing window rolling ema", "--smooth"),
}  # fmt: skip
TABLES: Mapping[str, Rows] = {
    "hf2meg": HF2MEG, "reshard": RESHARD, "merge": MERGE, "meg2hf": MEG2HF, "blend": BLEND, "layers": LAYERS,
    "resize": RESIZE, "verify": VERIFY, "inspect": INSPECT,
    "push": PUSH, "pull": PULL, "lora export": LORA_EXPORT, "lora merge": LORA_MERGE, "plot": PLOT,
    "diff": DIFF, "lora extract": LORA_EXTRACT,
    "demo": _all(_OUTPUTS, "--out"), "doctor": _all("output_dir save_dir", "--save"),
    "status": _all(f"{_INPUTS} save save_dir path", "FOLDER"), **DATA_ROWS,
}  # fmt: skip
"""Command -> rows for other programs' options; those of train, plan and bench are in `mconv.train.config.aliases`."""


POSITIONS = {"push": "FOLDER REPO", "pull": "REPO OUT", "verify": "REFERENCE CHECKPOINT", "diff": "A B",
             "lora extract": "TUNED BASE"}  # fmt: skip
"""Command with several positional parameters -> all of them."""


def advice(command: str, flag: str, given: Mapping[str, str] | None = None) -> str | None:
    """Return the end of a sentence about an option that `command` does not have; None if no program has it either.

    `given`: values on the command line by plain name, for advice that converts one.
    """
    if command in ("train", "plan", "bench"):
        from mconv.train.config.aliases import advice as of_training

        text = of_training(f"--{flag.lstrip('-')}", _with_layers(given or {}))
        return text and ("; " if text.startswith("here it is") else ": ") + text
    if command.startswith("launch ") and (told := foreign_launch.advice(plain(flag))):
        return told
    row = TABLES.get(command, {}).get(plain(flag))
    if row is None:
        return None
    if row.isupper():
        return f"; it is given by position: mconv {command} {POSITIONS.get(command, row)}"
    return f"; here it is {row}" if row.startswith("--") else f": {row}"


def _with_layers(given: Mapping[str, str]) -> dict[str, str]:
    """Return the given values, with the number of layers if a preset says it."""
    from mconv.train.model.presets import PRESETS

    preset = PRESETS.get(given.get("preset", ""))
    return {"num_layers": str(preset.spec.num_layers), **given} if preset else {**given}


def plain(flag: str) -> str:
    """Return an option as the tables spell it: no leading dashes, no value, underscores."""
    return flag.lstrip("-").partition("=")[0].replace("-", "_").lower()
