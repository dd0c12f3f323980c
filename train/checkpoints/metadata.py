"""Metadata of a training checkpoint: Megatron-LM's args, the manifest, the side files."""

from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mconv.convert.checkpoint.model import SIDE_FOLDER, SourceModel
from mconv.convert.dialects.mcore import args_of, layout_of
from mconv.convert.folders import manifest, sidecar
from mconv.convert.spelling import dtypes
from mconv.errors import FormatError
from mconv.spec import ModelSpec
from mconv.train.checkpoints import adapt, folders
from mconv.train.checkpoints.same_args import SAVED
from mconv.train.config import TrainConfig
from mconv.train.megatron.parallel import Parallel
from mconv.train.model.architecture import DEFAULT_STD
from mconv.train.model.engine import unwrap
from mconv.train.model.presets import PRESETS

RECOMPUTE = ("recompute_granularity", "recompute_method", "recompute_num_layers", "recompute_modules")
FIXED = {
    "transformer_impl": "local", "calculate_per_token_loss": True, "accumulate_allreduce_grads_in_fp32": True,
}  # fmt: skip
"""Args of Megatron-LM's that a run of ours has no choice in."""


def settings_of(config: TrainConfig, *, seq_length: int) -> dict[str, Any]:
    """Return what of a run Megatron-LM knows as its args: a run that it goes on with takes some of them over.

    `seq_length`: the tokens of a sample, which may be fewer than the model has positions.
    """
    recompute = {name: getattr(config, name) for name in RECOMPUTE}
    std = PRESETS[config.preset].init_method_std if config.preset else DEFAULT_STD
    first, last = config.start_weight_decay, config.end_weight_decay
    return {
        **FIXED,
        **{name: getattr(config, name) for name in SAVED},
        **(recompute if config.recompute_granularity != "none" else dict.fromkeys(RECOMPUTE)),
        "seq_length": seq_length, "encoder_seq_length": seq_length,
        "split": _split(config),
        "start_weight_decay": config.weight_decay if first is None else first,
        "end_weight_decay": config.weight_decay if last is None else last,
        "init_method_std": config.init_method_std or std,
        "use_distributed_optimizer": config.distributed_optimizer,
    }  # fmt: skip


def _split(config: TrainConfig) -> str | None:
    """Return the shares of the data as used, where Megatron-LM would take shares of its own."""
    if config.mock_data:
        return "1,1,1"
    return config.split or ("100,0,0" if config.data else None)


def distributed(checkpoint: SourceModel) -> bool | None:
    """Return whether a checkpoint's optimizer was shared among replicas; None if its args do not say."""
    said = getattr(checkpoint.common.get("args"), "use_distributed_optimizer", None)
    return None if said is None else bool(said)


def precision(common: Mapping[str, Any]) -> str | None:
    """Return the precision in which the run of a checkpoint trained, by its args; None if they do not say it."""
    args = vars(common["args"]) if "args" in common else {}
    if "params_dtype" not in args:
        return None
    return next((name for name in ("bf16", "fp16") if args.get(name)), "fp32")


def args_now(spec: ModelSpec, parallel: Parallel, chunks: list[Any], settings: Mapping[str, Any]) -> Namespace:
    """Return Megatron-LM's args of this checkpoint: plain values only, since it loads with torch's weights_only."""
    whole = unwrap(chunks[0])
    layout = parallel.layout(padded_vocab=whole.vocab_size)
    dtype = str(whole.config.params_dtype).removeprefix("torch.")
    args = args_of(spec, layout, dtype=dtype)
    world = torch.distributed.get_world_size()
    vars(args).update(
        no_save_optim=False, no_save_rng=False, world_size=world, data_parallel_size=parallel.data_parallel(world),
        sequence_parallel=parallel.sequence_parallel, params_dtype=whole.config.params_dtype, **settings,
    )  # fmt: skip
    if found := adapt.adapted(whole):
        args.lora = found.to_dict()
    return args


def _ancestors(folder: Path, origin: SourceModel | None) -> list[str]:
    """Return the names of a checkpoint's ancestors, without earlier checkpoints of the same run."""
    if origin is None or not origin.path.is_dir():  # random weights
        return []
    found = manifest.descent(folder, origin.path, origin.manifest)
    return found[:-1] if origin.path.resolve().parent == folder.resolve().parent else found


def finish(folder: Path, spec: ModelSpec, args: Namespace, *, origin: SourceModel | None) -> None:
    """Add the files that conversion expects: the manifest, and the side files of the checkpoint that it came from."""
    before = (origin.manifest or {}) if origin else {}
    named = {"name": origin.name, "format": origin.format} if origin else {}
    detail = {"from": named.get("name"), "iteration": args.iteration, "samples": args.consumed_train_samples}
    made = manifest.make(
        spec,
        format="torch_dist",
        dialect="mcore",
        layout=layout_of(args),
        dtype=str(args.params_dtype).removeprefix("torch."),
        source=before.get("source") or named,
        digests={},  # of weights that change with every save; `verify` reads the tensors themselves
        copies=before.get("copies", []),
        ignored=origin.ignored if origin else None,
        history=[*before.get("history", []), {"step": "train", "detail": detail}],
        ancestors=_ancestors(folder, origin),
    )
    if lora := getattr(args, "lora", None):
        made["adapter"] = {name: lora[name] for name in ("rank", "alpha") if name in lora}
    made["side_files"] = sidecar.copy(_side_files(folder.parent, origin), folder / SIDE_FOLDER)
    if sidecar.CONFIG in made["side_files"]:
        with suppress(FormatError):  # a config that cannot be read must not cost the checkpoint
            dtypes.set_in(folder / SIDE_FOLDER / sidecar.CONFIG, made["dtype"])
    made["side_files"].pop(sidecar.CONFIG, None)  # it is the config of what is there, not of what was
    manifest.write(folder, made)


def _side_files(root: Path, origin: SourceModel | None) -> dict[str, Path]:
    """Return the files that travel with the model: those of the origin, or of the last save where that is gone.

    A run that goes on from its own checkpoint lets that one go in time.
    """
    places = [folders.folder_of(root, number) / SIDE_FOLDER for number in reversed(folders.iterations(root))]
    others = (found for place in places if (found := sidecar.look(place).files))
    return (origin.side_files if origin else {}) or next(others, {})
