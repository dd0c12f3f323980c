"""Callbacks after a checkpoint: a line in `progress.txt`, an export to Hugging Face, the user's command."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import iterations, plan
from mconv.convert.engine.rewrite import rewrite
from mconv.errors import CheckFailed, MconvError
from mconv.train.checkpoints import disk
from mconv.train.checkpoints.folders import folder_of
from mconv.train.config import TrainConfig
from mconv.train.logs import progress
from mconv.train.loop.run import Run
from mconv.train.megatron import collectives

HF = "hf"
"""Under the save folder: exports, under the names of their iterations, as `mconv meg2hf --iterations` makes them."""


@dataclass(slots=True, kw_only=True)
class Callbacks:
    """Rank 0's work after each checkpoint of a run; the other ranks wait for its outcome."""

    config: TrainConfig
    say: Callable[[str], None]
    iterations: int
    """Iterations of the whole run."""
    progress: progress.Progress | None
    """The progress file, on rank 0 of a run that saves."""
    per_sample: float
    """Floating-point operations of training on one sample."""
    tokens: int
    """Tokens in one sample."""
    running: list[tuple[int, "subprocess.Popen[Any]"]] = field(default_factory=list)
    """Commands in the background, each with the iteration that it was given."""

    def checkpoint(self, iteration: int, consumed: int) -> None:
        """Do what follows the checkpoint of `iteration`, which is whole. Every rank calls it.

        Raises CheckFailed on every rank, as `after_checkpoint_failure` says.
        """
        self._apply_policy(collectives.on_rank_0(lambda: self._all(iteration, consumed)))

    def close(self) -> None:
        """Wait for commands that are still running. Every rank calls it; raises as `checkpoint` does."""
        self._apply_policy(collectives.on_rank_0(lambda: self._ended(wait=True)))

    def read(self) -> set[int]:
        """Return the iterations that commands in the background may still be reading: on rank 0."""
        return {iteration for iteration, process in self.running if process.poll() is None}

    def _all(self, iteration: int, consumed: int) -> list[str]:
        """Do everything that is due; return what went wrong."""
        assert self.progress is not None
        folder = folder_of(Path(str(self.config.save)), iteration)
        bad, exported = self._ended(wait=False), None
        try:
            self.progress.saved(iteration=iteration, flops=consumed * self.per_sample, tokens=consumed * self.tokens)
        except (OSError, ValueError) as error:  # a full disk, or a line that another program has left: no reason to stop
            self.say(f"warning: {self.progress.file} was not written: {error}")
        if self._exports(iteration):
            try:
                exported = export(folder)
                self.say(f"exported {exported}")
            except (MconvError, OSError) as error:
                bad.append(f"{folder.name} could not be exported: {error}")
        if self.config.after_checkpoint:
            bad += self._command(folder, iteration, exported)
        ends = bool(bad) and self.config.after_checkpoint_failure == "stop"
        return bad + (self._ended(wait=True) if ends else [])

    def _exports(self, iteration: int) -> bool:
        return disk.exports(self.config, iteration, self.iterations)

    def _command(self, folder: Path, iteration: int, exported: Path | None) -> list[str]:
        told = {"MCONV_CHECKPOINT": str(folder.resolve()), "MCONV_ITERATION": str(iteration)}
        told |= {"MCONV_HF_FOLDER": str(exported.resolve())} if exported else {}
        command = ["sh", "-c", str(self.config.after_checkpoint), "after_checkpoint", told["MCONV_CHECKPOINT"]]
        # A session of its own: what asks the run to stop is not for it. Its words go where the other ranks' do.
        try:
            started = subprocess.Popen(
                command, env=alone() | told, start_new_session=True, stdin=subprocess.DEVNULL, stdout=2,
            )  # fmt: skip
        except OSError as error:  # no memory for another process
            return [f"after_checkpoint of {folder.name} was not started: {error}"]
        self.running.append((iteration, started))
        return [] if self.config.after_checkpoint_background else self._ended(wait=True)

    def _ended(self, *, wait: bool) -> list[str]:
        """Return the failures of commands that have ended."""
        bad, going = [], []
        for iteration, process in self.running:
            code = process.wait() if wait else process.poll()
            if code is None:
                going.append((iteration, process))
            elif code:
                bad.append(f"after_checkpoint of {folder_of(Path(), iteration).name}: exit code {code}")
        self.running = going
        return bad

    def _apply_policy(self, bad: list[str]) -> None:
        """Say what went wrong, and do as the policy says."""
        for line in bad:
            self.say(f"warning: {line}")
        if bad and self.config.after_checkpoint_failure == "stop":
            raise CheckFailed(f"{'; '.join(bad)}; the run stops, as after_checkpoint_failure says, and can be resumed")


def callbacks(run: Run, *, say: Callable[[str], None]) -> Callbacks:
    """Return the callbacks of a run at its start; rank 0 notes the start in `progress.txt`."""
    config, tokens = run.config, run.seq_length
    per_sample = run.flops_per_token * tokens
    kept = None
    if config.save and torch.distributed.get_rank() == 0:
        kept = progress.Progress(
            file=Path(config.save) / progress.NAME, gpus=torch.distributed.get_world_size(), began=datetime.now(),
            flops_before=run.consumed * per_sample,
        )  # fmt: skip
        try:
            kept.started()
        except OSError as error:
            say(f"warning: {kept.file} was not written: {error}")
    return Callbacks(
        config=config, say=say, iterations=run.iterations, progress=kept, per_sample=per_sample, tokens=tokens
    )


def export(folder: Path) -> Path:
    """Export one iteration's folder, a tensor at a time; nothing is done where that was done. Returns the new folder."""
    out = folder.parent / HF / folder.name
    mark = iterations.mark(folder)
    if not iterations.is_done(out, mark):
        found = open_checkpoint(folder)
        rewrite(plan.make(found, out, format="hf", overwrite=True, resume=True, fingerprint=mark), step="meg2hf")
    return out


def alone() -> dict[str, str]:
    """Return the environment without the variables that make a process a rank."""
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    return {
        name: value for name, value in os.environ.items() if name not in ranks and not name.startswith("TORCHELASTIC_")
    }
