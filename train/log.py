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


def line(step: Step, *, train_iters: int, global_batch_size: int, now: datetime) -> str:
    """Megatron-LM's line, field for field, so that its parsers read ours."""
    norm = "" if step.grad_norm is None else f" grad norm: {step.grad_norm:.3f} |"
    return (
        f" [{now:%Y-%m-%d %H:%M:%S.%f}] iteration {step.iteration:8d}/{train_iters:8d} |"
        f" consumed samples: {step.consumed_samples:12d} |"
        f" elapsed time per iteration (ms): {1000 * step.seconds:.1f} |"
        f" learning rate: {step.lr:.6E} | global batch size: {global_batch_size:5d} |"
        f" lm loss: {step.loss:.6E} | loss scale: 1.0 |{norm}"
        " number of skipped iterations:   0 | number of nan iterations:   0 |"
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

    def evaluation(self, iteration: int, loss: float) -> None:
        """Record and print a validation loss."""
        self._write({"iteration": iteration, "validation_loss": loss})
        self.say(f" validation loss at iteration {iteration} | lm loss value: {loss:.6E} |")
        if self.board:
            self.board.add_scalar("validation_loss", loss, iteration)

    def close(self) -> None:
        if self.board:
            self.board.close()

    def _print(self) -> None:
        count, last = len(self.window), self.window[-1]
        means = {name: sum(getattr(s, name) for s in self.window) / count for name in ("loss", "seconds")}
        shown = dataclasses.replace(last, **means)
        now = datetime.now()
        self.say(line(shown, train_iters=self.train_iters, global_batch_size=self.global_batch_size, now=now))
        self.window.clear()

    def _write(self, record: dict[str, Any]) -> None:
        if self.file:
            with self.file.open("a") as file:
                file.write(json.dumps({**record, "time": round(time.time(), 3)}) + "\n")


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
