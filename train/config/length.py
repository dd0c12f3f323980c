"""How long a run is, and how many samples each of its steps takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules


@dataclass(frozen=True, slots=True)
class RunLength:
    """A whole run, resumed parts included."""

    iterations: int
    """Optimizer steps."""
    samples: int
    """Samples that are asked of the data, which the last step may not quite use up."""


def size_at(consumed: int, *, last: int, ramp: Sequence[int] | None) -> int:
    """Return the samples of the step that begins at sample `consumed`, where batches grow to `last`.

    `ramp`: first size, increment, and the samples until `last` is reached; None where every step takes `last`.
    """
    if not ramp or consumed > ramp[2]:
        return last
    first, increment, samples = ramp
    # last=8 ramp=2 2 24: span 8; a step that begins before sample 8 takes 2, then 4 up to 16, 6 up to 24, then 8.
    span = samples / ((last - first) // increment)  # divided as megatron-core does, or some steps would differ by one
    return first + int(consumed / span) * increment


def batch_size(config: Any, consumed: int) -> int:
    """Return the samples of the step of a run that begins at sample `consumed`."""
    return size_at(consumed, last=config.global_batch_size, ramp=config.rampup_batch_size)


def run_length(config: Any) -> RunLength:
    """Return the steps and samples of a run; a last batch that is not full is left out, as Megatron-LM does."""
    if config.train_samples is None:
        iterations = config.train_iters or 0
        return RunLength(iterations, iterations * config.global_batch_size)
    steps = consumed = 0
    growing = min(config.rampup_batch_size[2], config.train_samples) if config.rampup_batch_size else -1
    while consumed <= growing:
        consumed += batch_size(config, consumed)
        steps += 1
    left = max(0, config.train_samples - consumed)
    return RunLength(steps + left // config.global_batch_size, max(config.train_samples, consumed))


@dataclass(frozen=True, kw_only=True)
class Length:
    """Length: batch sizes, and the number of steps or samples."""

    micro_batch_size: int = 1
    """Samples that pass through the model at once on each data-parallel replica."""
    global_batch_size: int = 8
    """Samples in one optimizer step, over all micro batches and replicas."""
    rampup_batch_size: list[int] | None = None
    """Growth of the global batch size, as three numbers: first size, increment, and the samples until it reaches
    global_batch_size."""
    train_iters: int | None = None
    """Optimizer steps of the whole run, resumed parts included; or give train_samples."""
    train_samples: int | None = None
    """Samples of the whole run, resumed parts included, in whole global batches; or give train_iters."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, "micro_batch_size global_batch_size train_iters train_samples")
        given = [name for name in ("train_iters", "train_samples") if getattr(config, name) is not None]
        if len(given) == 2 or (not given and not config.eval_only):
            both = "train_iters and train_samples are both set; give one of them"
            yield both if given else "the length of the run is not set: give train_iters or train_samples"
        if config.train_samples is not None and 0 < config.train_samples < config.global_batch_size:
            yield f"train_samples {config.train_samples} is less than one global batch of {config.global_batch_size}"
        if config.rampup_batch_size is not None:
            yield from _ramp(config, config.rampup_batch_size)


def _ramp(config: Any, ramp: list[int]) -> Iterator[str]:
    """Yield the broken rules of the ramp-up, which megatron-core would meet in mid-run."""
    if len(ramp) != 3 or min(ramp) < 1:
        yield f"rampup_batch_size is {ramp}; it must be three numbers of at least 1: first size, increment, samples"
        return
    first, increment, _ = ramp
    if first >= config.global_batch_size or (config.global_batch_size - first) % increment:
        yield (
            f"rampup_batch_size {ramp} does not go from {first} to global_batch_size {config.global_batch_size} "
            f"in steps of {increment}"
        )
    if config.train_iters is not None:
        yield "rampup_batch_size makes iterations of different sizes; use train_samples instead of train_iters"


def unshared(config: Any, *, replicas: int) -> list[str]:
    """Return a problem for each batch size that the replicas (and interleaved stages) cannot share evenly."""
    sizes = {"global_batch_size": config.global_batch_size}
    if config.rampup_batch_size:
        first, increment, _ = config.rampup_batch_size
        sizes |= {"rampup_batch_size's first size": first, "rampup_batch_size's increment": increment}
    turns = config.pp if config.vpp > 1 else 1
    unit = f"micro_batch_size {config.micro_batch_size} x {replicas} replicas"
    if turns > 1:
        unit += f" x pp {turns} (vpp {config.vpp}: interleaved stages take as many micro batches in turn)"
    return [
        f"{name} {size} is not a multiple of {unit}"
        for name, size in sizes.items()
        if size % (config.micro_batch_size * replicas * turns)
    ]
