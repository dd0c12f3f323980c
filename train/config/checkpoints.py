"""What a run leaves behind and resumes from, what follows a checkpoint, and when a run stops."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Checkpoints: saving, keeping and resuming."""

    save: str | None = None
    """Folder for checkpoints and the log. A run that finds its own checkpoint there continues from it."""
    save_interval: int = 0
    """Iterations between checkpoints; 0 saves only at the end."""

    async_save: bool = False
    """Continue training while a checkpoint is written. Each rank's memory may double meanwhile."""
    keep_last: int | None = None
    """Number of newest checkpoints to keep; all if not given. Only checkpoints of mconv train are ever removed."""
    keep_every: int | None = None
    """With keep_last: also keep every checkpoint whose iteration is a multiple of this."""
    on_full_disk: Literal["stop", "continue"] = "stop"
    """When a save finds the disk full. stop: end the run with exit code 2. continue: train on and try again at the next
    save."""
    allow_full_disk: bool = False
    """Start even if the disk of `save` has no room for a checkpoint."""
    resume: bool = False
    """Continue the run in load (Megatron-LM's or mconv's): its iteration, optimizer state and schedule. Settings that are
    not given are taken from it."""
    finetune: bool = False
    """Take only the weights of load and start at iteration 0; its optimizer state is left out."""
    iteration: int | None = None
    """Iteration to continue from in `save`, or to start from in `load`; the one in the tracker if not given."""
    overwrite: bool = False
    """With iteration: allow the run to replace the later checkpoints in `save`, each when its own is complete."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.not_negative(config, "save_interval")
        yield from rules.at_least_1(config, "keep_last keep_every iteration")
        for name in ("save_interval", "exit_after", "async_save", "keep_last", "allow_full_disk"):
            if getattr(config, name) and config.save is None:
                yield f"{name} needs save, the folder for the checkpoints"
        if config.resume and config.finetune:
            yield "resume continues the run in load, finetune begins a new one with its weights; give one of them"
        if config.finetune and config.init == "random":
            yield "finetune begins with the weights of load; init random has none, so leave it out"
        if config.resume and config.load is None:
            yield "resume continues the run that load holds; give load"
        if config.resume and config.optimizer != "adam":
            yield f"resume takes over Adam's state; optimizer is {config.optimizer}"
        if config.keep_every and not config.keep_last:
            yield "keep_every needs keep_last, whose removals it limits; give that too"
        if config.overwrite and config.iteration is None:
            yield "overwrite needs iteration, the checkpoint to go back to; give that too"


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Hooks: commands and exports after each checkpoint."""

    after_checkpoint: str | None = None
    """Shell command to run after each checkpoint. Its folder is $1 and $MCONV_CHECKPOINT; an exported folder is
    $MCONV_HF_FOLDER."""
    after_checkpoint_background: bool = False
    """Continue training while the after_checkpoint command runs, instead of waiting for it."""
    after_checkpoint_failure: Literal["warn", "stop"] = "warn"
    """When the after_checkpoint command fails: warn, or stop the run with exit code 1."""
    export_hf_every: int = 0
    """Export every n-th checkpoint of save_interval, and the last one, to `hf/` in the save folder; 0 exports none."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.not_negative(config, "export_hf_every")
        if (config.after_checkpoint or config.export_hf_every) and config.save is None:
            yield "after_checkpoint and export_hf_every need save, the folder for the checkpoints"
        if config.export_hf_every and (config.lora_rank or config.lora_load):
            yield "export_hf_every exports models, and checkpoints of LoRA hold adapters alone; leave it out"


JOBS = re.compile(r"\d+(_\d+)?(,\d+(_\d+)?)*")


@dataclass(frozen=True, kw_only=True)
class Stops:
    """Stops: ways to save and stop before the end; the same command continues the run."""

    exit_after: int | None = None
    """Save and stop after this iteration; the schedule stays that of the whole run."""
    exit_interval: int | None = None
    """Save and stop at the next iteration that is a multiple of this."""
    exit_duration_in_mins: float | None = None
    """Save and stop after this many minutes, loading included."""
    stop_before_limit: float = 5.0
    """Save and stop this many minutes before a Slurm job's time limit, or halfway through a limit shorter than twice
    that; 0 ignores the limit."""
    trigger_dir: str | None = None
    """Folder to watch: a file named `save` in it makes the run save, one named `exit` makes it save and stop. `triggers`
    in the save folder if not given."""
    on_first_failure: str | None = None
    """Command to run once if the run fails before its first step, so that a queue of jobs does not fail one by one."""
    cancel_job: str | None = None
    """Slurm job ids, separated by commas, to cancel if the run fails before its first step."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, "exit_after exit_interval")
        yield from rules.each(config, "exit_duration_in_mins", "more than 0", lambda value: value > 0)
        yield from rules.not_negative(config, "stop_before_limit")
        yield from rules.each(config, "cancel_job", "job ids with commas between", JOBS.fullmatch)
        for name in ("exit_interval", "exit_duration_in_mins", "trigger_dir"):
            if getattr(config, name) is not None and config.save is None:
                yield f"{name} needs save, the folder for the checkpoints"
