"""What a run measures, logs and profiles, and what it does about NaN and loss spikes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mconv.train.config import rules
from mconv.train.config.data import shares


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluation: loss, perplexity and accuracy on validation and test data."""

    eval_interval: int = 0
    """Iterations between evaluations on the validation data, with one more at the end; 0 never evaluates."""
    eval_iters: int = 10
    """Global batches in one evaluation."""
    eval_only: bool = False
    """Only evaluate, on the validation and test data: nothing is trained and no checkpoint or log is written."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, "eval_iters")
        yield from rules.not_negative(config, "eval_interval")
        valid, test = (sum(shares(config.split)[n : n + 1]) if config.data else 0.0 for n in (1, 2))
        split = f"split {config.split!r} has no share for" if config.split else "split is not set, which leaves no"
        given = split if config.data else "there is no"
        if config.eval_interval and not (config.mock_data or valid or config.valid_data):
            yield f"eval_interval is {config.eval_interval}, but {given} validation data"
        if config.eval_only and not (config.mock_data or valid or test or config.valid_data or config.test_data):
            yield "eval_only measures on validation and test data, and there is neither; see split, valid_data, test_data"
        if config.valid_data and not (config.eval_interval or config.eval_only):
            yield "valid_data is set, but neither eval_interval nor eval_only ever evaluates on it"


@dataclass(frozen=True, kw_only=True)
class Logs:
    """Logs: printed lines, TensorBoard and Weights & Biases."""

    log_interval: int = 1
    """Iterations between printed lines; the log file has every iteration."""
    log_throughput: bool = False
    """Also print each GPU's TFLOP/s, tokens/s and MFU, its memory, and the time left. The log file always has them."""
    print_args: bool = False
    """Print all arguments at the start, in Megatron-LM's form; otherwise only those that are not at their defaults or
    were inherited."""
    tensorboard_dir: str | None = None
    """Folder for TensorBoard event files."""
    wandb_project: str | None = None
    """Weights & Biases project to log to, with the key of WANDB_API_KEY; offline without a key."""
    wandb_entity: str | None = None
    """Weights & Biases user or team; W&B's default if not given."""
    wandb_exp_name: str | None = None
    """Weights & Biases run name. A resumed run continues under the id recorded in the save folder."""
    wandb_save_dir: str | None = None
    """Folder for W&B's own files; the save folder if not given."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, "log_interval")
        for name in ("wandb_entity", "wandb_exp_name", "wandb_save_dir"):
            if getattr(config, name) is not None and config.wandb_project is None:
                yield f"{name} is for wandb_project; give that too"


@dataclass(frozen=True, kw_only=True)
class Profiling:
    """Profiling: where the time of some steps goes."""

    profile: str | None = None
    """Iterations to profile: the first and the last one, such as 10-12, or a single one."""
    profile_ranks: list[int] | None = None
    """Ranks to profile; 0 if not given."""
    profile_with: Literal["torch", "nsys"] = "torch"
    """torch: torch.profiler writes a trace of each rank to `profile` in the save folder, for Perfetto or chrome://tracing.
    nsys: `nsys profile --capture-range=cudaProfilerApi` around the run captures these iterations; on GPUs only."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        if config.profile is None:
            yield from (f"{name} is for profile; give that too" for name in ("profile_ranks",) if getattr(config, name))
            return
        steps = profiled(config)
        if not steps:
            yield f"profile is {config.profile!r}; it must be the first and the last iteration, such as 10-12"
        elif config.train_iters is not None and steps[0] > config.train_iters:
            yield f"profile is {config.profile}, which begins after the last iteration, {config.train_iters}"
        yield from rules.each(config, "profile_ranks", "ranks, from 0 on", lambda ranks: bool(ranks) and min(ranks) >= 0)
        if config.profile_with == "torch" and config.save is None:
            yield "profile needs save, the folder for the traces"
        if config.eval_only:
            yield "profile is of steps, and eval_only takes none; leave one of them out"


def profiled(config: Any) -> range:
    """Return the iterations that a configuration profiles; none if it gives no such range."""
    found = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", config.profile or "")
    return range(int(found[1]), int(found[2] or found[1]) + 1) if found else range(0)


def beyond(config: Any, *, world: int) -> list[str]:
    """Return a problem if a configuration profiles ranks that a world of `world` ranks does not have."""
    ranks = [rank for rank in config.profile_ranks or [] if rank >= world]
    return [f"profile_ranks is {config.profile_ranks}, but the last of {world} ranks is {world - 1}"] if ranks else []


@dataclass(frozen=True, kw_only=True)
class Guards:
    """Guards: checks before training, and reactions to NaN and loss spikes."""

    verify_first: bool = False
    """Before training, verify load against the model that it was converted from; stop if they differ."""
    verify_against: str | None = None
    """Reference for verify_first instead of the recorded source: a checkpoint, or a repository in the Hub's cache."""
    on_nan: Literal["stop", "skip"] = "stop"
    """At a loss or gradient that is not finite: stop, or skip that step."""
    spike_factor: float | None = None
    """A loss of more than this many times the median of the last spike_window losses is a spike. Not checked if not
    given."""
    spike_window: int = 32
    """Number of previous losses in the median of spike_factor."""
    on_spike: Literal["warn", "skip", "stop"] = "warn"
    """At a loss spike: warn and continue, skip that step, or stop."""
    max_skips: int = 10
    """Consecutive steps that on_nan and on_spike may skip before the run stops."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        if config.verify_against is not None and not config.verify_first:
            yield "verify_against is for verify_first; give that too"
        yield from rules.at_least_1(config, "spike_window max_skips")
        yield from rules.each(config, "spike_factor", "more than 1", lambda factor: factor > 1)
        if config.on_spike != "warn" and config.spike_factor is None:
            yield f"on_spike is {config.on_spike}, but without spike_factor no loss counts as a spike"
