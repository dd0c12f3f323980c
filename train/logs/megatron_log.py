"""Write and read Megatron's iteration lines by one table of fields; reads Megatron-LM's own logs, too."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

TIME, RATE, SAMPLES, BATCH = (
    "elapsed time per iteration (ms)", "learning rate", "consumed samples", "global batch size"
)  # fmt: skip
LOSS, NORM, SKIPPED, NAN = "lm loss", "grad norm", "number of skipped iterations", "number of nan iterations"
SCALE, THROUGHPUT = "loss scale", "throughput per GPU (TFLOP/s/GPU)"
FIELDS = {
    SAMPLES: "12d", TIME: ".1f", THROUGHPUT: ".1f", RATE: ".6E", BATCH: "5d",
    LOSS: ".6E", "z_loss": ".6E", "load_balancing_loss": ".6E", SCALE: ".1f", NORM: ".3f", "num zeros": ".1f",
    "params norm": ".3f", SKIPPED: "3d", NAN: "3d",
    "tokens/sec/gpu": ".1f", "MFU (%)": ".2f", "memory (GiB)": ".2f",
}  # fmt: skip
"""Fields of the iteration line in Megatron-LM's order, and how each is printed; the last row is ours, behind them."""
MEANS = (LOSS, TIME, "z_loss", "load_balancing_loss")
"""Fields that are means over the steps since the line before."""

_STAMP = r"\[(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?)\] ?"
_ITERATION = re.compile(rf"(?:{_STAMP})?\s*\biteration\s+(?P<iteration>\d+)/\s*(?P<of>\d+) \|(?P<rest>.*)")
_VALIDATION = re.compile(
    r"validation loss at iteration (?P<iteration>\d+)(?: on (?P<on>validation|test) set)?\s*\|(?P<rest>.*)"
)
_ARGUMENT = re.compile(r"^\s*(?:\d+:)?\s*(?P<name>\w+) \.*\s(?P<value>.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One iteration line: its numbers as they are printed."""

    iteration: int
    train_iters: int
    values: dict[str, float]
    """Values by the names of FIELDS, and of any other fields of the line; fields that the line lacks are left out."""
    time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """One line of a validation."""

    iteration: int
    on: str | None
    """Data set (`validation` or `test`) at the end of a run; None during it."""
    values: dict[str, float]


@dataclass(slots=True, kw_only=True)
class PrintedLog:
    """All that a log says in lines of known form."""

    iterations: list[Line] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)
    """The dump at the start of the run; the last one, if several runs follow each other in one log."""
    starts: list[int] = field(default_factory=list)
    """Number of lines before each run that Megatron-LM itself started; empty for a log that it did not print."""


def write(line: Line, *, formats: Mapping[str, str] | None = None, eta: str = "") -> str:
    """Return the line as Megatron-LM prints it; `formats` replace those of fields (Megatron once had rates as .3E)."""
    how = FIELDS | dict(formats or {})
    stamp = f"[{line.time:%Y-%m-%d %H:%M:%S.%f}] " if line.time else ""
    shown = [f" {name}: {_number(line.values[name], form)} |" for name, form in how.items() if name in line.values]
    tail = f" eta: {eta} |" if eta else ""
    return f" {stamp}iteration {line.iteration:8d}/{line.train_iters:8d} |{''.join(shown)}{tail}"


def _number(value: float, form: str) -> str:
    return format(int(value) if form.endswith("d") else value, form)


def read(text: Iterable[str]) -> PrintedLog:
    """Return a log from its lines; lines of no known form are passed over."""
    log, dumping = PrintedLog(), False
    for raw in text:
        if "arguments ------" in raw:
            dumping = "end of arguments" not in raw
            log.arguments = {} if dumping else log.arguments
        elif dumping and (found := _ARGUMENT.match(raw)):
            log.arguments[found["name"]] = found["value"].strip()
        elif "using world size:" in raw:
            log.starts.append(len(log.iterations))
        elif line := iteration_line(raw):
            log.iterations.append(line)
        elif found := _VALIDATION.search(raw):
            values = dict(_pairs(found["rest"]))
            log.validations.append(Validation(iteration=int(found["iteration"]), on=found["on"], values=values))
    return log


def iteration_line(text: str) -> Line | None:
    """Return the iteration line in `text`, whatever stands before it (a rank, a time) or after its last bar."""
    if not (found := _ITERATION.search(text)):
        return None
    stamp = found["time"]
    return Line(
        iteration=int(found["iteration"]), train_iters=int(found["of"]), values=dict(_pairs(found["rest"])),
        time=datetime.fromisoformat(stamp) if stamp else None,
    )  # fmt: skip


def _pairs(text: str) -> Iterator[tuple[str, float]]:
    """Name and number of each field, up to the last bar: behind it another rank may go on in the same line."""
    for part in text.split("|")[:-1]:
        name, _, value = part.rpartition(":")
        if part.lstrip().startswith("eta:"):  # a duration has colons of its own
            continue
        try:
            yield name.strip(), float(value)
        except ValueError:
            return


def own_windows(log: PrintedLog) -> list[Line]:
    """Return the lines with means over their own steps: Megatron-LM prints the second one over two windows.

    Megatron-LM (core 0.16.1 to 0.19.0) does not reset its counters after a run's first line: the second has the mean of
    both windows, and skipped and nan counts of both. The first window is one step long.
    """
    lines = list(log.iterations)
    for at, end in itertools.pairwise([*log.starts, len(lines)]):
        if end - at > 1:
            lines[at + 1] = _second(lines[at], lines[at + 1])
    return lines


def _second(first: Line, second: Line) -> Line:
    """Return the second line of a run over its own window. Skipped steps have no loss; each step has a time."""
    values = dict(second.values)
    for name in (SKIPPED, NAN):
        if name in values:
            values[name] -= first.values.get(name, 0)
    steps = second.iteration - first.iteration
    taken = dict.fromkeys(MEANS, (1, steps))
    for name in MEANS[:1] + MEANS[2:]:
        taken[name] = (1 - int(first.values.get(SKIPPED, 0)), steps - int(values.get(SKIPPED, 0)))
    for name, (before, own) in taken.items():
        if name in values and own > 0:
            values[name] = (values[name] * (before + own) - before * first.values.get(name, 0.0)) / own
    return Line(iteration=second.iteration, train_iters=second.train_iters, values=values, time=second.time)
