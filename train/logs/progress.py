"""`progress.txt`: one line a start and a checkpoint, as Megatron-LM keeps it over all jobs of a run."""

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

NAME = "progress.txt"
START, SAVED = "Starting job", ("Saved checkpoint", "Saving async checkpoint")
TIME = "%Y-%m-%d %H:%M:%S"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The file of one run, and what this job began with."""

    file: Path
    gpus: int
    began: datetime
    """Time at which this job began."""
    flops_before: float
    """Operations of the run before this job."""

    def started(self) -> None:
        """Write that a job begins."""
        self._write(START)

    def saved(self, *, iteration: int, flops: float, tokens: int) -> None:
        """Write that a checkpoint is complete; `flops` and `tokens` are those of the run so far."""
        now = datetime.now()
        since, base = self._unbroken()
        job = _throughput(flops - self.flops_before, now, self.began, self.gpus)
        run = _throughput(flops - base, now, since, self.gpus)
        self._write(
            SAVED[0], f"Iteration: {iteration}", f"Job throughput: {job:.1f} TFLOP/s/GPU",
            f"Cumulative throughput: {run:.1f} TFLOP/s/GPU", f"Floating-point operations: {flops:.2e}",
            f"Tokens (in billions): {tokens / 1e9:.2f}",
        )  # fmt: skip

    def _unbroken(self) -> tuple[datetime, float]:
        """Return since when jobs have run on this many GPUs without a change, and the operations done before that."""
        since, base, latest = None, 0.0, 0.0
        for line in self.file.read_text().splitlines() if self.file.is_file() else []:
            words = line.split("\t")
            if len(words) < 4:
                continue
            if words[3] in SAVED:
                latest = float(words[7].rpartition(": ")[2])
            if words[2] != f"# GPUs: {self.gpus}":
                since = None
            elif words[3] == START and since is None:
                since, base = datetime.strptime(words[0], TIME), latest
        return since or self.began, base

    def _write(self, *words: str) -> None:
        stamp, job = datetime.now().strftime(TIME), os.environ.get("SLURM_JOB_ID", "")
        with self.file.open("a") as file:
            file.write("\t".join([stamp, f"Job ID: {job}", f"# GPUs: {self.gpus}", *words]) + "\n")


def _throughput(flops: float, now: datetime, since: datetime, gpus: int) -> float:
    """Return TFLOP/s of each GPU."""
    return flops / max(1.0, (now - since).total_seconds()) / gpus / 1e12
