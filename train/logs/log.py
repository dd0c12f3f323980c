"""The log of a run: Megatron's iteration line, one JSON line per step, and boards."""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from mconv.convert.folders.staging import write_whole
from mconv.train.logs import megatron_log
from mconv.train.logs.boards import Board
from mconv.train.logs.meter import Meter, clock

Say = Callable[[str], None]
Show = Callable[[dict[str, Any]], None]
NAME = "train.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimizer step."""

    iteration: int
    """Number of the step, 1 for the first."""
    consumed_samples: int
    loss: float
    """Mean over the global batch's tokens, in nats."""
    grad_norm: float | None
    """Norm of the gradient before clipping; None if the optimizer does not report it."""
    lr: float
    """Learning rate after the step, as Megatron prints it: that of the next step."""
    seconds: float
    tokens_per_second: float
    """Tokens per second over all ranks."""
    global_batch_size: int | None = None
    """Samples of this step, where they are not the run's (a ramp-up)."""
    loss_scale: float = 1.0
    """Loss scale after the step; 1 without fp16."""
    skipped: int = 0
    """1 if the step was skipped (an fp16 overflow, or a guard's policy), else 0."""
    nan: int = 0
    """1 if the step was skipped for a loss that is not finite, else 0."""


def line(
    step: Step, *, train_iters: int, global_batch_size: int, now: datetime, measured: dict[str, Any] | None = None
) -> str:
    """Return Megatron-LM's line, field for field, so that its parsers read ours: no loss if every step was skipped.

    `measured` adds speed, memory and the time left.
    """
    more = measured or {}
    values: dict[str, float | None] = {
        megatron_log.SAMPLES: step.consumed_samples,
        megatron_log.TIME: 1000 * step.seconds,
        megatron_log.THROUGHPUT: more.get("tflops_per_gpu"),
        megatron_log.RATE: step.lr,
        megatron_log.BATCH: step.global_batch_size or global_batch_size,
        megatron_log.LOSS: step.loss if step.loss > 0 else None,
        megatron_log.SCALE: step.loss_scale,
        megatron_log.NORM: step.grad_norm,
        megatron_log.SKIPPED: step.skipped,
        megatron_log.NAN: step.nan,
        "tokens/sec/gpu": more.get("tokens_per_second_per_gpu"),
        "MFU (%)": 100 * more["mfu"] if "mfu" in more else None,
        "memory (GiB)": more["memory_bytes"] / 2**30 if more else None,
    }
    known = {name: float(value) for name, value in values.items() if value is not None}
    written = megatron_log.Line(iteration=step.iteration, train_iters=train_iters, values=known, time=now)
    return megatron_log.write(written, eta=clock(more["seconds_left"]) if more else "")


def mean(window: list[Step]) -> Step:
    """Return the steps of a window as one, as Megatron-LM prints them: mean loss of the steps taken, skips counted."""
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
    boards: tuple[Board, ...] = ()
    meter: Meter | None = None
    throughput: bool = False
    """True if the printed line includes what the meter measures, as the file and the boards always do."""
    show: Show | None = None
    """Gets each step's record for a live view beneath the printed lines."""
    window: list[Step] = field(default_factory=list)
    """Steps since the last printed line."""
    failed: set[str] = field(default_factory=set)
    """Logs that could not be written to, each reported once."""

    def step(self, step: Step) -> None:
        """Record a step, and print the line that is due: means over the steps since the last one."""
        record = {**dataclasses.asdict(step), **self._measure(step)}
        self._write(record)
        self.window.append(step)
        if step.iteration % self.interval == 0 or step.iteration == self.train_iters:
            self._print(record)
        if self.show:
            self.show(record)
        self._board({name: value for name, value in record.items() if name != "iteration"}, step.iteration)

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
        self._board({f"{on}_{name}": value for name, value in measured.items()}, iteration)

    def close(self) -> None:
        for board in self.boards:
            self._try(_name(board), board.close)

    def _measure(self, step: Step) -> dict[str, float]:
        if self.meter is None:
            return {}
        seconds, rate = step.seconds, step.tokens_per_second
        return self.meter.measure(iteration=step.iteration, seconds=seconds, tokens_per_second=rate)

    def _print(self, record: dict[str, Any]) -> None:
        shown, now = mean(self.window), datetime.now()
        self.window.clear()
        measured = {**record, **self._rates(shown.seconds, record)} if self.throughput and self.meter else None
        self.say(
            line(
                shown, train_iters=self.train_iters, global_batch_size=self.global_batch_size, now=now, measured=measured
            )
        )

    def _rates(self, seconds: float, record: dict[str, Any]) -> dict[str, float]:
        """Return the speeds over a window whose steps took `seconds` on average."""
        share = record["seconds"] / seconds
        names = ("tokens_per_second_per_gpu", "tflops_per_gpu", "mfu")
        return {name: record[name] * share for name in names if name in record}

    def _board(self, values: dict[str, Any], iteration: int) -> None:
        known = {name: float(value) for name, value in values.items() if value is not None}
        for board in self.boards:
            self._try(_name(board), partial(board.log, known, iteration))

    def _write(self, record: dict[str, Any]) -> None:
        if self.file:
            known = {name: value if _written(value) else None for name, value in record.items()}
            text = json.dumps({**known, "time": round(time.time(), 3)})
            self._try(str(self.file), partial(_append, self.file, text))

    def _try(self, name: str, write: Callable[[], None]) -> None:
        """Write to a log. One that fails (a full disk, a lost network) costs no step: all other ranks wait for it."""
        try:
            write()
        except Exception as error:  # boards have kinds of their own
            if name not in self.failed:
                self.failed.add(name)
                self.say(f"warning: {name}: {error}; the run continues, and what could not be written is missing there")


def _append(file: Path, line: str) -> None:
    with file.open("a") as opened:
        opened.write(line + "\n")


def _name(board: Board) -> str:
    return type(board).__name__


def _written(value: Any) -> bool:
    """Return whether JSON can hold a value: it has neither NaN nor infinity."""
    return not isinstance(value, float) or math.isfinite(value)


def forget_after(file: Path, iteration: int) -> None:
    """Remove the lines of steps that a resumed run will take again."""
    if file.is_file():
        lines = [text for text in file.read_text().splitlines() if _iteration(text) <= iteration]
        write_whole(file, "".join(text + "\n" for text in lines))


def _iteration(text: str) -> float:
    """Return a line's iteration; infinity for a line that a kill cut short."""
    try:
        return float(json.loads(text)["iteration"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
