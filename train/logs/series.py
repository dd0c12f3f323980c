"""A run's curves, from its `train.jsonl` or from what Megatron-LM (or mconv) printed."""

import json
import math
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.errors import FormatError
from mconv.train.logs import log as logs
from mconv.train.logs import megatron_log as megatron

CURVES = {
    "loss": "training loss",
    "validation_loss": "validation loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
    "samples_per_second": "samples per second",
}
"""Names of curves -> their titles. Samples per second are drawn only if a log does not say how long a sample is."""
PRINTED = {megatron.LOSS: "loss", megatron.RATE: "lr", megatron.NORM: "grad_norm"}
Curve = list[tuple[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One run: for each curve that it has, its points in the order of iterations."""

    name: str
    curves: dict[str, Curve]


def read(path: Path) -> Series:
    """Return the curves of a save folder, a train.jsonl, or a printed log. Raises FormatError if it has no step."""
    file = path / logs.NAME if path.is_dir() else path
    try:
        text = file.read_text(errors="replace")
    except OSError as error:
        raise FormatError(f"{file}: cannot be read: {error.strerror}; give a save folder, or the log of a run") from error
    points = _records(text) if text.lstrip().startswith("{") else _printed(megatron.read(text.splitlines()))
    curves = {name: sorted(points[name].items()) for name in CURVES if points[name]}
    if not curves:
        raise FormatError(f"{file}: it contains no training step; give a save folder, or the log of a run")
    return Series(name=path.name if path.is_dir() else path.stem, curves=curves)


def _records(text: str) -> dict[str, dict[int, float]]:
    """Return the points of JSON lines; of an iteration that was taken twice the later one, and no line cut short."""
    points: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    for line in text.splitlines():
        try:
            record = json.loads(line)
            at = int(record["iteration"])
        except (ValueError, KeyError, TypeError):
            continue
        for name in CURVES:
            if not (name == "loss" and record.get("skipped")):
                _put(points[name], at, record.get(name))
    return points


def _printed(log: megatron.PrintedLog) -> dict[str, dict[int, float]]:
    """Return the points of printed lines, each the mean of its own steps."""
    points: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    length = log.arguments.get("seq_length", "")
    for line in megatron.own_windows(log):
        for printed, name in PRINTED.items():
            _put(points[name], line.iteration, line.values.get(printed))
        batch, taken = line.values.get(megatron.BATCH), line.values.get(megatron.TIME)
        if batch and taken:
            rate = 1000 * batch / taken
            name, per = ("tokens_per_second", int(length)) if length.isdigit() else ("samples_per_second", 1)
            _put(points[name], line.iteration, rate * per)
    for told in log.validations:
        if told.on != "test" and told.iteration not in points["validation_loss"]:  # the last one may come twice
            _put(points["validation_loss"], told.iteration, told.values.get("lm loss value"))
    return points


def _put(points: dict[int, float], at: int, value: Any) -> None:
    if isinstance(value, int | float) and math.isfinite(value):
        points[at] = float(value)


def several(paths: list[Path]) -> list[Series]:
    """Return the series of several runs; runs of the same name are told apart by their folders."""
    found = [read(path) for path in paths]
    names = [one.name for one in found]
    return [
        Series(name=one.name if names.count(one.name) == 1 else str(path), curves=one.curves)
        for one, path in zip(found, paths, strict=True)
    ]


def smooth(curve: Curve, *, over: int) -> Curve:
    """Return each point as the mean of the `over` points around it, fewer at the ends."""
    values, before = [y for _, y in curve], over // 2
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    spans = [(max(0, i - before), min(len(values), i + over - before)) for i in range(len(values))]
    return [(x, (sums[b] - sums[a]) / (b - a)) for (x, _), (a, b) in zip(curve, spans, strict=True)]


def thin(curve: Curve, *, most: int) -> Curve:
    """Return at most `most` points, each the mean of neighbours."""
    width = math.ceil(len(curve) / most)
    runs = [curve[i : i + width] for i in range(0, len(curve), width)]
    return [(run[-1][0], sum(y for _, y in run) / len(run)) for run in runs]


def ends(curve: Curve, *, most: int) -> Curve:
    """Return about `most` points, the lowest and the highest of neighbours, so that a spike of one step is still seen."""
    width = math.ceil(2 * len(curve) / most)
    if width <= 2:
        return curve
    runs = [curve[i : i + width] for i in range(0, len(curve), width)]
    value = operator.itemgetter(1)
    return [point for run in runs for point in sorted({min(run, key=value), max(run, key=value)})]
