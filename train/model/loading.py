"""Load a rank's weights from its own file or from a torch_dist folder; anything wrong is refused by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mconv.errors import FormatError, refuse
from mconv.train.megatron.imports import (
    ShardedTensor,
    StrictHandling,
    dist_checkpointing,
    quiet,
)
from mconv.train.model import partial, trusted
from mconv.train.model.engine import parameters, unwrap


def load_rank_file(model: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """Fill the model from the `model` dict of this rank's mp_rank file. Raises FormatError on any name or shape amiss."""
    own = parameters(model)
    given = {k: v for k, v in state.items() if not k.endswith(("_extra_state", "rotary_pos_emb.inv_freq"))}
    bad = [f"{name}: not in the file" for name in own if name not in given]
    bad += [f"{name}: in the file, but not in the model" for name in given if name not in own]
    bad += [
        f"{name}: {list(given[name].shape)} in the file, {list(tensor.shape)} in the model"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    refuse(bad, doing="loading a rank's file", kind=FormatError)
    for name, tensor in own.items():
        tensor.copy_(given[name])


@quiet()
def load_torch_dist(model: torch.nn.Module, folder: Path | str, *, part: str | None = None) -> None:
    """Fill the model from a torch_dist folder (`iter_*` or `release`) with megatron-core's own loader; on all ranks.

    `part`: only the parameters whose names start so, by megatron-core's description of them and torch's reader; on any
    rank. So is all of a folder whose common state its loader cannot read. Raises FormatError on a missing tensor, and on
    a vocabulary of another padding, which megatron-core would stretch or cut in silence. Surplus tensors (optimizer
    state) are left alone, and so are extra states: those are pickles, which the loader would run.
    """
    whole = unwrap(model)
    described, parameters = whole.sharded_state_dict(), dict(whole.named_parameters())
    wanted = {name: described[name] for name in parameters if name.startswith(part or "")}
    _check_shapes(wanted, str(folder))
    read = _by_megatron_core if part is None and trusted.reads_common(folder) else partial.read
    for name, tensor in read(folder, wanted).items():
        parameters[name].data.copy_(tensor)


def _by_megatron_core(folder: Path | str, wanted: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors that a sharded state dict asks for, by its own names; every rank asks for its own."""
    try:
        loaded = dist_checkpointing.load({"model": wanted}, str(folder), strict=StrictHandling.RAISE_UNEXPECTED)
    except dist_checkpointing.core.CheckpointingException as error:
        raise FormatError(f"{folder}: megatron-core cannot load it: {error}") from error
    return dict(loaded["model"])


def _check_shapes(wanted: Mapping[str, Any], folder: str) -> None:
    """Compare the global shapes of a sharded state dict with the checkpoint's. Raises FormatError."""
    try:
        stored = dist_checkpointing.load_tensors_metadata(folder)
    except (dist_checkpointing.core.CheckpointingException, OSError) as error:
        raise FormatError(f"{folder}: not a torch_dist checkpoint: {error}") from error
    shapes = {x.key: list(x.global_shape) for x in wanted.values() if isinstance(x, ShardedTensor)}
    bad = [f"{key}: not in the checkpoint" for key in sorted(shapes) if key not in stored]
    bad += [
        f"{key}: {list(stored[key].global_shape)} in the checkpoint, {shape} in the model"
        for key, shape in sorted(shapes.items())
        if key in stored and list(stored[key].global_shape) != shape
    ]
    refuse(bad, doing=f"loading {folder}", kind=FormatError)
