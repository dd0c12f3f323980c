"""Settings of a resumed run: those that the user does not give are taken from its checkpoint.

Megatron-LM and Megatron-LLM save their args with a checkpoint; mconv saves these too, and its own settings beside them.
`TAKEN` and `NOT_TAKEN` say for each field of TrainConfig which of the two it is.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.checkpoint.optimizer import has_state
from mconv.convert.folders.ignored import ignored
from mconv.errors import FormatError
from mconv.train.checkpoints import same_args
from mconv.train.checkpoints.folders import folder_of, iterations, latest
from mconv.train.checkpoints.resume_choice import left_out
from mconv.train.config import SECTIONS, TrainConfig, fitting
from mconv.train.config.data import shares

TAKEN = {
    **{name: name for name in same_args.TAKEN},
    "data": "data_path", "train_data": "train_data_path", "valid_data": "valid_data_path", "test_data": "test_data_path",
    "padded_vocab_in_loss": "padded_vocab_size",  # Megatron's loss counts these columns, whatever its args say
    # mconv's own settings, of which Megatron-LM has no args
    "freeze": None, "data_weights": None, "eod_token": None, "packing": None,
    "eval_interval": "eval_interval", "eval_iters": "eval_iters",  # behind the data that they need
}  # fmt: skip
"""Field -> the arg that it is taken from; None where only a checkpoint of mconv's knows it."""
NOT_TAKEN = (
    ("the weights of the checkpoint say it", "fp32 bf16 fp16"),
    ("the checkpoint says what the model is",
     "vocab_size init preset model init_method_std num_layers hidden_size ffn_hidden_size num_attention_heads "
     "num_query_groups kv_channels max_position_embeddings norm_epsilon rotary_base position_embedding_type"),
    ("how the work is spread is for the machine at hand, and the state loads at any layout",
     "tp pp vpp decoder_first_pipeline_num_layers decoder_last_pipeline_num_layers "
     "account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split sequence_parallel nproc_per_node "
     "distributed_optimizer overlap_grad_reduce overlap_param_gather recompute_granularity recompute_method "
     "recompute_num_layers recompute_modules attention_backend num_workers no_mmap_bin_files async_save"),
    ("folders and accounts are the user's",
     "load save data_cache tensorboard_dir wandb_project wandb_entity wandb_exp_name wandb_save_dir trigger_dir"),
    ("it is about one start, not about the run",
     "resume finetune iteration overwrite ignore_arg ignore_config_key allow_other_tokenizer verify_first verify_against "
     "eval_only exit_after exit_interval exit_duration_in_mins stop_before_limit on_first_failure cancel_job "
     "profile profile_ranks profile_with"),
    ("no step depends on it, or Megatron-LM has no such arg",
     "keep_last keep_every after_checkpoint after_checkpoint_background after_checkpoint_failure export_hf_every "
     "log_interval log_throughput print_args on_full_disk allow_full_disk on_nan spike_factor "
     "spike_window on_spike max_skips manual_gc_interval"),
    ("LoRA begins anew", "lora_rank lora_alpha lora_dropout lora_targets lora_load"),
)  # fmt: skip
"""Reason, and the fields that are not taken from a checkpoint for it."""
OTHERWISE: dict[str, tuple[Any, str]] = {
    "decoupled_lr": (None, "has one learning rate for all weights"),
    "decoupled_weight_decay": (True, "decays weights apart from the gradient"),
    "no_weight_decay_cond_type": (None, "decays matrices, and neither biases nor norms"),
    "head_lr_mult": (1.0, "has one learning rate for all weights"),
    "fp8": (None, "computes in bf16, fp16 or fp32"),
    "fp4": (None, "computes in bf16, fp16 or fp32"),
    "iterations_to_skip": ([], "skips no iterations by number"),
    "step_batch_size_schedule": (None, "grows batches evenly, by --rampup-batch-size"),
    "data_args_path": (None, "has the prefixes of its data in data"),
    "per_split_data_args_path": (None, "has the prefixes of its data in train_data, valid_data and test_data"),
}
"""Args that change steps and have no field: the value that mconv's steps are like, and what mconv does."""
SOURCES = ("data", "mock_data", "train_data", "valid_data", "test_data", "data_weights")
UNITS = ("lr_decay_{}", "lr_warmup_{}", "lr_wsd_decay_{}")


@dataclass(frozen=True, slots=True)
class Inherited:
    """The values of a run with what was taken, and lines that say so."""

    values: dict[str, Any]
    lines: tuple[str, ...] = ()


def filled(values: Mapping[str, Any]) -> Inherited:
    """Return the values that a user gives, with those of the run that `resume` goes on with where none is given.

    The run is that of `save` where it has a checkpoint already, else that of `load`. Without `resume` nothing is taken.
    Raises ConfigError where `load` holds a run and nothing says whether it is to go on, and FormatError where `resume` is
    given and there is none: before a word on what is missing.
    """
    values = {name: value if (fit := fitting(name, value)) is None else fit for name, value in values.items()}
    own = _own(values)
    if not values.get("resume"):
        if own is None and values.get("load") is not None and not values.get("finetune"):
            left_out(_opened(values, None), values)
        return Inherited(dict(values), _continued(values, own))
    if values.get("load") is None or any(values.get(name) for name in ("finetune", "lora_rank", "lora_load")):
        return Inherited(dict(values))  # which is refused, with the reason
    opened = _opened(values, own)
    if not own and not has_state(opened):
        raise FormatError(f"resume: {opened.name} holds weights only, so there is no run to resume; leave resume out")
    found = known(opened)
    given = {name: value for name, value in values.items() if value is not None}
    values, taken, notes = {**found, **given}, {}, []
    for name in (name for name in TAKEN if name in found and name not in given):
        value = found[name]
        why = _against(name, value, set(given), values)
        if why is None:
            taken[name] = value
        else:
            del values[name]
            notes += [f"not taken from there: {name} {_shown(value)} ({why})"] * (why != SILENT)
    return Inherited({**given, **taken}, (*_lines(opened, taken), *notes, *_otherwise(opened)))


def _continued(values: Mapping[str, Any], own: Path | None) -> tuple[str, ...]:
    """Return a line that `finetune` begins nothing here, where `save` holds a run that continues."""
    if own is None or not values.get("finetune"):
        return ()
    return (f"{values['save']} holds a run, which continues from {own.name}: finetune and load are for a new one",)


def known(opened: SourceModel) -> dict[str, Any]:
    """Return the settings that a checkpoint of a run holds, by our fields: those of its args, over them mconv's own."""
    args, memory = opened.common.get("args"), opened.common.get("mconv")
    own = memory.get("settings") if isinstance(memory, dict) else None
    found = dict(_of_args(vars(args))) if args is not None else {}
    if opened.layout is not None and opened.layout.padded_vocab != opened.spec.vocab_size:
        found["padded_vocab_in_loss"] = True
    if isinstance(own, dict):
        found = {name: value for name, value in found.items() if name not in own}
        found |= {name: value for name, value in own.items() if value is not None and fitting(name, value) == value}
    return _without_idle(found)


def _of_args(args: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the fields that args set to a value of the field's type."""
    for name, arg in TAKEN.items():
        value = args.get(arg) if arg else None
        if name == "rampup_batch_size" and isinstance(value, list | tuple):
            # megatron-core 0.18, which brought the schedule, parses a ramp and ignores it.
            ignored_there = "step_batch_size_schedule" in args
            value = None if ignored_there else [int(n) if str(n).isdecimal() else n for n in value]
        if name != "padded_vocab_in_loss" and value is not None and (fit := fitting(name, value)) is not None:
            yield name, fit
    for name in ("bf16", "fp16"):
        if isinstance(args.get(name), bool):
            yield name, args[name]


def _without_idle(found: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that are in use: not the other unit of length, nor parts of another schedule, ..."""
    counted, other = ("samples", "iters") if found.get("train_samples") else ("iters", "samples")
    whole = found.get(f"train_{counted}")
    idle = {f"train_{other}", *(unit.format(other) for unit in UNITS)}
    if found.get(f"lr_decay_{counted}") == whole:
        idle.add(f"lr_decay_{counted}")  # Megatron-LM fills it in with the length, which it then follows
    if found.get("lr_warmup_fraction"):
        idle |= {"lr_warmup_iters", "lr_warmup_samples"}
    if found.get("lr_decay_style") != "WSD":
        idle |= {"lr_wsd_decay_style", "lr_wsd_decay_iters", "lr_wsd_decay_samples"}
    if found.get("weight_decay_incr_style", "constant") == "constant":
        idle |= {"start_weight_decay", "end_weight_decay"}
    if not found.get("fp16"):
        idle |= {"loss_scale", "initial_loss_scale", "min_loss_scale", "loss_scale_window", "hysteresis"}
    if found.get("optimizer") != "sgd":
        idle.add("sgd_momentum")
    if not found.get("mock_data"):
        idle.add("mock_data")
    else:
        idle |= {"data", "split"}
    if found.get("data_type") != "instruction":
        idle |= {"scalar_loss_mask", "packing", "variable_seq_lengths"}
    if not (found.get("eval_iters") and found.get("eval_interval")):
        idle |= {"eval_iters", "eval_interval"}
    return {name: value for name, value in found.items() if name not in idle}


# ---- what speaks against taking one ----------------------------------------------------------------------------------
SILENT = "what is given takes its place"
AGAINST: tuple[tuple[str, Callable[[set[str], Mapping[str, Any]], Any], str], ...] = (
    ("train_iters train_samples", lambda given, _: given & {"train_iters", "train_samples"}, SILENT),
    ("lr_warmup_iters lr_warmup_samples lr_warmup_fraction",
     lambda given, _: given & {"lr_warmup_iters", "lr_warmup_samples", "lr_warmup_fraction"}, SILENT),
    ("lr_decay_samples lr_warmup_samples lr_wsd_decay_samples rampup_batch_size",
     lambda given, _: "train_iters" in given, "the length is given in train_iters"),
    ("lr_decay_iters lr_warmup_iters lr_wsd_decay_iters",
     lambda given, _: "train_samples" in given, "the length is given in train_samples"),
    ("lr_wsd_decay_style lr_wsd_decay_iters lr_wsd_decay_samples",
     lambda _, values: values.get("lr_decay_style") != "WSD", SILENT),
    ("start_weight_decay end_weight_decay",
     lambda _, values: values.get("weight_decay_incr_style") == "constant", SILENT),
    ("loss_scale",
     lambda _, values: values.get("bf16") or values.get("fp32") or not values.get("fp16", True), "it is for fp16"),
    ("scalar_loss_mask packing variable_seq_lengths",
     lambda _, values: values.get("data_type") != "instruction", "it is for data_type instruction"),
    ("data mock_data train_data valid_data test_data data_weights",
     lambda given, _: given & {"data", "mock_data", "train_data"}, SILENT),
    ("split", lambda given, _: given & {"mock_data", "train_data"}, SILENT),
    ("save_interval", lambda given, _: "save" not in given, SILENT),
    ("eval_interval eval_iters", lambda _, values: not _can_evaluate(values), SILENT),
)  # fmt: skip
"""Fields that are not taken, when (by the names that are given; by the run's values, with the given ones over them),
and why: without a word where that is plain."""


def _against(name: str, value: Any, given: set[str], values: Mapping[str, Any]) -> str | None:
    """Return why a setting is not taken, by what is given, or None."""
    for names, when, why in AGAINST:
        if name in names.split() and when(given, values):
            return why if value else SILENT
    return _missing(value) if name in ("data", "train_data", "valid_data", "test_data") else None


def _missing(prefixes: list[str]) -> str | None:
    """Return which data files of a run are not there, or None where all are."""
    for word in (part for prefix in prefixes for part in str(prefix).split()):
        if _is_number(word) or Path(word).is_dir():
            continue
        for suffix in (".bin", ".idx"):
            if not Path(word + suffix).is_file():
                return f"{word}{suffix} is not there; give --data"
    return None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _can_evaluate(values: Mapping[str, Any]) -> bool:
    """Return whether the data of a run has a share for validation."""
    split = values.get("split")
    valid = sum(shares(split)[1:2]) if values.get("data") and isinstance(split, str) else 0
    return bool(values.get("mock_data") or values.get("valid_data") or valid)


# ---- where it is, and what to say ------------------------------------------------------------------------------------
def _opened(values: Mapping[str, Any], own: Path | None) -> SourceModel:
    """Open the run's own checkpoint, or else `load`, as the run itself will; a value of a wrong kind is refused later."""
    names = ("ignore_arg", "ignore_config_key", "vocab_size", "iteration")
    args, keys, vocab, number = (None if values.get(name) is None else fitting(name, values[name]) for name in names)
    return open_checkpoint(
        own or Path(str(values["load"])), vocab_size=vocab, iteration=None if own else number,
        ignore=ignored(args=args or (), config_keys=keys or ()),
    )  # fmt: skip


def _own(values: Mapping[str, Any]) -> Path | None:
    """Return the checkpoint of `save` that the run goes on from, if it has one."""
    root, asked = Path(str(values.get("save") or "")), values.get("iteration")
    if not values.get("save") or not root.is_dir():
        return None
    if isinstance(asked, int) and asked in iterations(root):
        return folder_of(root, asked)
    number = latest(root)
    return None if number is None else folder_of(root, number)


def _lines(opened: SourceModel, taken: dict[str, Any]) -> Iterator[str]:
    """Yield what was taken and differs from the defaults, a line for each section."""
    defaults = {name: getattr(TrainConfig, name, None) for name in TrainConfig.__dataclass_fields__}
    other = {name: value for name, value in taken.items() if value != defaults[name]}
    same = len(taken) - len(other)
    also = f" ({same} more equal mconv's defaults)" if same else ""
    if other:
        yield f"taken from the run in {opened.name}, since not given{also}:"
    elif same:
        yield f"taken from the run in {opened.name}, since not given: {same} settings, all equal to mconv's defaults"
    for section in SECTIONS:
        words = [f"{name} {_shown(other[name])}" for name in section.__annotations__ if name in other]
        if words:
            yield f"  {', '.join(words)}"


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if type(value) is float else str(value)


def _otherwise(opened: SourceModel) -> Iterator[str]:
    """Yield a line for each arg of the run that mconv has no field for and that makes its steps differ from mconv's."""
    args = vars(opened.common["args"]) if "args" in opened.common else {}
    for name, (like, ours) in OTHERWISE.items():
        if name in args and args[name] != like and (args[name] or like):
            yield f"warning: the run was trained with {name} {args[name]}; mconv train {ours}"
