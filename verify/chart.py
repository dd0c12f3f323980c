"""Layout of a chart: errors as dots over a logarithmic axis. `page.html.jinja` draws it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 720.0, 264.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 706.0, 44.0, 226.0
"""The frame. Values that are not finite go above it, exact zeros into its lowest strip."""
LANE = 26.0
"""Height of the strip for zeros, which have no logarithm."""
LABEL = 50.0
"""Width that a label of the horizontal axis needs."""
TICKS = 7
"""Largest number of labelled powers of ten."""


@dataclass(frozen=True, slots=True)
class Point:
    """One value, placed."""

    label: str
    value: float | None
    x: float
    y: float
    kind: str
    """`dot`, `zero`, or `off` for NaN and infinity."""
    marked: bool


@dataclass(frozen=True, slots=True)
class Mark:
    """A tick, or a horizontal level with a name."""

    label: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Everything that the template needs to draw one chart."""

    points: list[Point]
    lines: list[str]
    """Runs of finite values as points of SVG polylines."""
    ticks: list[Mark]
    labels: list[Mark]
    levels: list[Mark]
    radius: float


def finite(value: float | None) -> bool:
    """Return whether a value of a report is finite; JSON writes NaN as null."""
    return value is not None and math.isfinite(value)


def chart(
    labels: Sequence[str], values: Sequence[float | None], *, levels: dict[str, float | None], marked: int | None = None,
    first: int = 0,
) -> Chart:  # fmt: skip
    """Return a chart of `values` over their `labels`; `levels` are horizontal lines by name.

    `marked`: which one is pointed out. `first`: the first whose label counts up, so that round ones are shown.
    """
    known = {name: x for name, x in levels.items() if x is not None and finite(x) and x > 0}
    low, high = _decades([x for x in (*values, *known.values()) if x is not None and finite(x) and x > 0])
    step = (RIGHT - LEFT) / max(1, len(values))
    points = [
        _point(label, value, LEFT + step * (i + 0.5), low, high, marked=i == marked)
        for i, (label, value) in enumerate(zip(labels, values, strict=True))
    ]
    shown = _shown(len(points), step, first=first)
    every = math.ceil((high - low) / TICKS)
    return Chart(
        points=points,
        lines=_lines(points),
        ticks=[Mark(f"1e{n}" if n else "1", _height(float(n), low, high)) for n in range(high, low - 1, -every)],
        labels=[Mark(points[i].label, points[i].x) for i in shown],
        levels=[Mark(name, _height(math.log10(x), low, high)) for name, x in known.items()],
        radius=max(1.6, min(4.0, step / 4)),
    )


def _decades(values: list[float]) -> tuple[int, int]:
    """Return the powers of ten that enclose all values, at least one decade apart."""
    if not values:
        return -8, -6
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _height(exponent: float, low: int, high: int) -> float:
    share = (exponent - low) / (high - low)
    return round(BOTTOM - LANE - share * (BOTTOM - LANE - TOP), 1)


def _point(label: str, value: float | None, x: float, low: int, high: int, *, marked: bool) -> Point:
    if value is None or not math.isfinite(value):
        return Point(label, value, round(x, 1), TOP - 20, "off", marked)
    if value <= 0:
        return Point(label, value, round(x, 1), BOTTOM - LANE / 2 + 3, "zero", marked)
    return Point(label, value, round(x, 1), _height(math.log10(value), low, high), "dot", marked)


def _lines(points: list[Point]) -> list[str]:
    """Return polylines that join neighbouring dots."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if point.kind == "dot":
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [" ".join(f"{p.x},{p.y}" for p in run) for run in runs if len(run) > 1]


def _shown(count: int, step: float, *, first: int) -> list[int]:
    """Return the indices of the labels that have room: both ends, and every n-th between them."""
    every = next(n for n in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 100, count + 1) if n * step >= LABEL or n > count)
    inner = [i for i in range(first, count, every) if i * step >= LABEL and (count - 1 - i) * step >= LABEL]
    return sorted({0, *inner, count - 1}) if count else []
