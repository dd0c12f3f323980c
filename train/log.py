"""What a run tells: Megatron's iteration line, one JSON line per step, TensorBoard if wanted."""

import dataclasses
import importlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mconv.errors import MconvError

Say = Callable[[str], None]
NAME = "train.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimizer step."""

    iteration: int
    """1 for the first."""
    consumed_samples: int
    loss: float
    """Mean over the global batch's tokens, in nats."""
    grad_norm: float | None
    """Before clipping; None if the optimizer does not tell."""
    lr: float
    """Learning rate after the step, as Megatron prints it: that of the next step."""
    seconds: float
    tokens_per_second: float
    """Over all ranks."""
    global_batch_size: int | None = None
    """Samples of this step, where they are not the run's (a ramp-up)."""
    loss_scale: float = 1.0
    """After the step; 1 without fp16."""
    skipped: int = 0
    """1 if the weights were left as they were: an overflow of fp16, or a guard's policy."""
    nan: int = 0
    """1 if it was skipped for a loss that is not finite."""


def line(step: Step, *, train_iters: int, global_batch_size: int, now: datetime) -> str:
    """Megatron-LM's line, field for field, so that its parsers read ours: no loss where every step was skipped."""
    norm = "" if step.grad_norm is None else f" grad norm: {step.grad_norm:.3f} |"
    loss = f" lm loss: {step.loss:.6E} |" if step.loss > 0 else ""
    return (
        f" [{now:%Y-%m-%d %H:%M:%S.%f}] iteration {step.iteration:8d}/{train_iters:8d} |"
        f" consumed samples: {step.consumed_samples:12d} |"
        f" elapsed time per iteration (ms): {1000 * step.seconds:.1f} |"
        f" learning rate: {step.lr:.6E} | global batch size: {step.global_batch_size or global_batch_size:5d} |"
        f"{loss} loss scale: {step.loss_scale:.1f} |{norm}"
        f" number of skipped iterations: {step.skipped:3d} | number of nan iterations: {step.nan:3d} |"
    )


def mean(window: list[Step]) -> Step:
    """The steps of a window as one, as Megatron-LM prints them: losses of the steps that were taken, skips counted."""
    taken = [step.loss for step in window if not step.skipped]
    return dataclasses.replace(
        window[-1],
        loss=sum(taken) / len(taken) if taken else 0.0,
        seconds=sum(step.seconds for step in window) / len(window),
        skipped=sum(step.skipped for step in window),
        nan=sum(step.nan for step in window),
    )


@dataclass(slots=True, kw_only=True)
class Log:
    """Rank 0's log; every other rank's says nothing and writes nothing."""

    say: Say
    train_iters: int
    global_batch_size: int
    interval: int
    file: Path | None = None
    board: Any = None
    window: list[Step] = field(default_factory=list)
    """Steps since the last printed line."""

    def step(self, step: Step) -> None:
        """Record a step, and print the line that is due: means over the steps since the last one."""
        self._write(dataclasses.asdict(step))
        self.window.append(step)
        if step.iteration % self.interval == 0 or step.iteration == self.train_iters:
            self._print()
        for name, value in dataclasses.asdict(step).items():
            if self.board and value is not None and name != "iteration":
                self.board.add_scalar(name, value, step.iteration)

    def evaluation(
        self, iteration: int, measured: dict[str, float], *, on: str = "validation", last: bool = False
    ) -> None:
        """Record what was measured `on` a share of the data, and print it between rules, as Megatron-LM does."""
        self._write({"iteration": iteration, **{f"{on}_{name}": value for name, value in measured.items()}})
        where = f"{iteration} on {on} set" if last else str(iteration)
        values = f" lm loss value: {measured['loss']:.6E} | lm loss PPL: {measured['perplexity']:.6E} |"
        shares = (f" {name.replace('_', ' ')}: {value:.6E} |" for name, value in measured.items() if "accuracy" in name)
        text = f" validation loss at iteration {where} |{values}{''.join(shares)} "
        self.say("\n".join(["-" * (len(text) + 1), text, "-" * (len(text) + 1)]))
        for name, value in measured.items():
            if self.board:
                self.board.add_scalar(f"{on}_{name}", value, iteration)

    def close(self) -> None:
        if self.board:
            self.board.close()

    def _print(self) -> None:
        shown, now = mean(self.window), datetime.now()
        self.say(line(shown, train_iters=self.train_iters, global_batch_size=self.global_batch_size, now=now))
        self.window.clear()

    def _write(self, record: dict[str, Any]) -> None:
        if self.file:
            with self.file.open("a") as file:
                known = {name: None if value != value else value for name, value in record.items()}  # JSON has no NaN
                file.write(json.dumps({**known, "time": round(time.time(), 3)}) + "\n")


def forget_after(file: Path, iteration: int) -> None:
    """Drop the lines of steps that a resumed run will take again."""
    if file.is_file():
        lines = [text for text in file.read_text().splitlines() if _iteration(text) <= iteration]
        file.write_text("".join(text + "\n" for text in lines))


def _iteration(text: str) -> float:
    """A line's iteration; a line that a kill cut short belongs to none."""
    try:
        return float(json.loads(text)["iteration"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def board(folder: str | None) -> Any:
    """A TensorBoard writer, or None. Raises MconvError if it is wanted and not installed."""
    if folder is None:
        return None
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter(folder)
    except ImportError as error:
        raise MconvError("tensorboard_dir needs the package tensorboard: pip install 'mconv[log]'") from error
