"""Resume a run from the logical tensors of its checkpoint, whichever program saved it and at whatever layout.

megatron-core's own loader reads optimizer state that the same optimizer saved as global tensors. Megatron-LM's default
format (flat buffers cut at the replicas' shares) and its `torch` format have one layout each; here they are read as
tensors of the model, and cut for this rank like weights.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mconv.convert.checkpoint.model import Checkpoint, SourceModel
from mconv.convert.checkpoint.optimizer import OptimizerState
from mconv.convert.checkpoint.optimizer import open_state as open_optimizer
from mconv.convert.formats.tensors import Located
from mconv.convert.spelling.values import shown
from mconv.errors import ConfigError, FormatError, refuse
from mconv.train.checkpoints.checkpoint import Loaded
from mconv.train.megatron.imports import DistributedOptimizer
from mconv.train.megatron.optimizer import kept_slice
from mconv.train.megatron.parallel import Parallel
from mconv.train.model import weights
from mconv.train.model.engine import unwrap
from mconv.train.optim.optimizer import parts, set_step


def open_state(checkpoint: SourceModel) -> OptimizerState:
    """Open the optimizer state of the run that a checkpoint holds. Raises FormatError if it holds weights alone."""
    if not isinstance(checkpoint, Checkpoint) or checkpoint.layout is None:
        raise FormatError(
            f"--resume: {checkpoint.name} holds weights only, so there is no run to resume; remove --resume"
        )
    counted(checkpoint)  # what is wrong with them stops before a model is built
    try:
        return open_optimizer(checkpoint, padding=True)
    except FormatError as error:
        if not _frozen(checkpoint):
            raise
        raise FormatError(
            f"{error}: it trained with freeze, and such a run can be resumed in its own folder only (--save "
            f"{checkpoint.path.parent}), with distributed_optimizer and precision as they were; --finetune starts "
            "a new run with its weights"
        ) from error


def _frozen(checkpoint: SourceModel) -> bool:
    """Return whether a checkpoint is of a run of mconv's that trained a part of its weights."""
    memory = checkpoint.common.get("mconv")
    settings = memory.get("settings") if isinstance(memory, dict) else None
    return isinstance(settings, dict) and bool(settings.get("freeze"))


def counted(checkpoint: SourceModel) -> Loaded:
    """Return how far the run of a checkpoint is. Raises FormatError where it does not say so in whole numbers."""
    common, scheduler = checkpoint.common, checkpoint.common.get("opt_param_scheduler", {})
    consumed = getattr(common.get("args"), "consumed_train_samples", None)
    found = {
        "iteration": common.get("iteration"),
        "args.consumed_train_samples": consumed,
        "opt_param_scheduler.num_steps": scheduler.get("num_steps", consumed) if isinstance(scheduler, dict) else None,
    }
    refuse(
        [f"{checkpoint.path}: {name} is {shown(name, value)}; a run that can be resumed has a whole number there"
         for name, value in found.items() if type(value) is not int or value < 0],
        doing="resume", kind=FormatError,
    )  # fmt: skip
    memory = common.get("mconv", {})
    iteration, consumed, scheduled = (int(value) for value in found.values())  # type: ignore[arg-type]
    return Loaded(iteration=iteration, consumed=consumed, scheduled=scheduled, memory=memory)


def check_unfinished(checkpoint: SourceModel, iterations: int) -> None:
    """Raise ConfigError where the run of a checkpoint has no step left of so many iterations."""
    if (now := counted(checkpoint).iteration) >= iterations:
        raise ConfigError(
            f"the run in {checkpoint.name} is at its end, iteration {now} of {iterations}: nothing is left to train; "
            "give a larger --train-iters (or --train-samples) to continue"
        )


def load(
    checkpoint: SourceModel, state: OptimizerState, *, chunks: list[Any], optimizer: Any, parallel: Parallel
) -> Loaded:
    """Fill model and optimizer with `checkpoint`'s run.

    Random states are not taken over: they are pickles, and nothing draws from them without dropout.
    """
    for number, chunk in enumerate(chunks):
        model = unwrap(chunk)
        for kind, source in {"param": state.main, **state.moments}.items():
            whole = {name: torch.empty(x.shape, dtype=torch.float32) for name, x in model.named_parameters()}
            weights.fill_tensors(whole, source, parallel, padded_vocab_size=model.vocab_size, chunk=number)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    _put(optimizer, parameter, kind, whole[name])
    set_step(optimizer, state.step)
    _set_scale(optimizer, state.grad_scaler)
    return counted(checkpoint)


def _put(optimizer: Any, parameter: torch.nn.Parameter, kind: str, whole: Tensor) -> None:
    """Copy one kind of state of one of this rank's parameters, or as much of it as its replica keeps."""
    if kind == "param":
        parameter.data.copy_(whole)
    for inner, main, kept in _mains(optimizer, parameter):
        target = main.data if kind == "param" else inner.state[main][kind]
        target.view(-1).copy_(whole.view(-1)[kept])


def _mains(optimizer: Any, parameter: torch.nn.Parameter) -> Iterator[tuple[Any, Tensor, slice]]:
    """Yield (torch's optimizer, the tensor that it steps, the elements of the parameter in it); nothing if frozen."""
    for part in parts(optimizer):
        if isinstance(part, DistributedOptimizer):
            if parameter in part.model_param_group_index_map:
                group, place = part.model_param_group_index_map[parameter]
                main = part.optimizer.param_groups[group]["params"][place]
                yield part.optimizer, main, kept_slice(part, parameter)
        else:
            main = getattr(parameter, "main_param", parameter)
            if main in part.optimizer.state:
                yield part.optimizer, main, slice(None)


def _set_scale(optimizer: Any, scaler: dict[str, Any] | None) -> None:
    """Set the dynamic loss scale, where both sides have one."""
    for part in parts(optimizer):
        if scaler and getattr(part, "grad_scaler", None):
            plain = {name: x.load() if isinstance(x, Located) else x for name, x in scaler.items()}
            part.grad_scaler.load_state_dict(plain)
