"""React to losses and gradients that are not finite, and to loss spikes; find out where they came from."""

import contextlib
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mconv.errors import CheckFailed
from mconv.train.loop.run import Run
from mconv.train.megatron.collectives import from_all_ranks
from mconv.train.megatron.imports import parallel_state
from mconv.train.model.engine import unwrap
from mconv.train.model.freeze import whole_name


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is wrong with a step before the weights have changed."""

    what: str
    policy: str
    """stop, skip or warn."""
    finite: bool


def may_go_on(run: Run, loss: float, norm: float, *, size: int, again: Callable[[], Any]) -> bool:
    """Return whether a step may change the weights; all ranks have the same numbers, and so the same answer.

    `again` runs the same batch forward once more, to see where it goes wrong. Raises CheckFailed where the policy is to
    stop, or has left out too many steps in a row.
    """
    found = _trouble(run, loss, norm)
    if found is None or found.policy == "warn":
        if found:
            run.say(_at(run, found, size))
        _remember(run, loss)
        return True
    return _leave_out(run, found, size=size, again=again)


def overflowed(run: Run, *, size: int, again: Callable[[], Any]) -> bool:
    """Leave out a step whose gradients overflow in fp16: its loss scale's business, until that can fall no lower."""
    scale, config = float(run.optimizer.get_loss_scale()), run.config
    if config.loss_scale is None and scale > config.min_loss_scale:
        return False
    found = Trouble(f"gradients overflow at a loss scale of {scale:g}, the lowest that is allowed", "skip", finite=False)
    return _leave_out(run, found, size=size, again=again)


def _leave_out(run: Run, found: Trouble, *, size: int, again: Callable[[], Any]) -> bool:
    """Say what is wrong and where. Raises CheckFailed where that is to stop the run, or did so too often in a row."""
    where = "" if found.finite else _where(run, again)
    text = _at(run, found, size) + where
    run.memory["skips"] = skips = run.memory.get("skips", 0) + 1
    if found.policy == "skip" and skips <= run.config.max_skips:
        run.say(f"{text}; the step is skipped")
        return False
    many = f" ({skips} in a row; max_skips is {run.config.max_skips})" if found.policy == "skip" else ""
    kept = f"the last checkpoint is of iteration {run.saved}" if run.saved else "there is no checkpoint of this run"
    raise CheckFailed(f"{text}{many}; {kept}")


def _trouble(run: Run, loss: float, norm: float) -> Trouble | None:
    config = run.config
    if not run.per_token_loss.weight:
        return Trouble("no token counts in the loss", "skip", finite=True)
    if not math.isfinite(loss):
        return Trouble(f"loss is {loss}", config.on_nan, finite=False)
    if not math.isfinite(norm):
        return Trouble(f"gradient norm is {norm}", config.on_nan, finite=False)
    before = run.memory.get("losses", [])
    if config.spike_factor is None or len(before) < config.spike_window:
        return None
    usual = statistics.median(before)
    what = f"loss {loss:.6g} is more than {config.spike_factor:g} times {usual:.6g}, the median of the last {len(before)}"
    return Trouble(what, config.on_spike, finite=True) if loss > config.spike_factor * usual else None


def _remember(run: Run, loss: float) -> None:
    """Remember what the next steps are compared with, in the checkpoint, so that a resumed run decides alike."""
    run.memory.pop("skips", None)
    if run.config.spike_factor is not None:
        run.memory["losses"] = [*run.memory.get("losses", []), loss][-run.config.spike_window :]


def _at(run: Run, found: Trouble, size: int) -> str:
    return f"{found.what} at iteration {run.iteration + 1} (samples {run.consumed} to {run.consumed + size - 1})"


def _where(run: Run, again: Callable[[], Any]) -> str:
    """Return where a forward pass, or else the gradients, are first not finite, agreed by all ranks."""
    found = [place for place in from_all_ranks(_first_output(run, again)) if place]
    if not found:
        found = [place for place in from_all_ranks(_first_gradient(run)) if place]
    if not found:
        return ""
    _, rank, what = min(found)
    return f", first in {what} on rank {rank}"


def _first_output(run: Run, again: Callable[[], Any]) -> tuple[Any, int, str] | None:
    """Return (order, rank, module and samples) of this rank's first output that is not finite."""
    found: list[tuple[int, str, int]] = []
    passes = [0] * len(run.chunks)
    with contextlib.ExitStack() as hooks:
        for number, chunk in enumerate(run.chunks):
            chunk.eval()
            for name, module in unwrap(chunk).named_modules():

                def look(_: Any, __: Any, output: Any, number: int = number, name: str = name) -> None:
                    if not found and not _finite(output):
                        found.append((number, name, passes[number]))
                    passes[number] += name == ""

                hooks.enter_context(module.register_forward_hook(look))
        with torch.no_grad():
            again()
    for chunk in run.chunks:
        chunk.train()
    if not found:
        return None
    number, name, micro = found[0]
    size, replicas = run.config.micro_batch_size, parallel_state.get_data_parallel_world_size()
    first = run.consumed + (micro * replicas + parallel_state.get_data_parallel_rank()) * size
    what = whole_name(unwrap(run.chunks[number]), name) or "the loss"
    return _order(number), torch.distributed.get_rank(), f"{what} of samples {first} to {first + size - 1}"


def _first_gradient(run: Run) -> tuple[Any, int, str] | None:
    for number, chunk in enumerate(run.chunks):
        model = unwrap(chunk)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not _finite(parameter.main_grad):
                return _order(number), torch.distributed.get_rank(), f"the gradient of {whole_name(model, name)}"
    return None


def _order(chunk: int) -> tuple[int, int]:
    """Return the position of a rank's chunk in the model."""
    return chunk, parallel_state.get_pipeline_model_parallel_rank()


def _finite(output: Any) -> bool:
    if isinstance(output, tuple | list):
        return all(_finite(part) for part in output)
    return not isinstance(output, Tensor) or not output.is_floating_point() or bool(torch.isfinite(output).all())
