"""The self-contained page of `mconv plot`: `curves.html.jinja` filled in, without scripts."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mconv.cli import pages
from mconv.cli.plot import COLOURS, panels, summary, width

if TYPE_CHECKING:
    from mconv.train.logs.series import Curve, Series

WIDTH, HEIGHT = 720.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 70.0, 684.0, 14.0, 252.0
MOST = 700
"""Largest number of points of a line: about one per pixel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Values along one side of a chart."""

    low: float
    high: float
    start: float
    end: float
    whole: bool = False
    """True if values are whole numbers only."""

    def at(self, value: float) -> float:
        """Return the position of a value."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Round values and their positions."""
        step = _round_step(max((self.high - self.low) / 6, float(self.whole)))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(self.at(n * step), _text(n * step, step)) for n in range(first, last + 1)]


def page(found: "list[Series]", *, smooth: int | None) -> str:
    """Return the page with all panels of all runs."""
    runs = [(one.name, COLOURS[i % len(COLOURS)], summary(one)) for i, one in enumerate(found)]
    frame = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
    drawn = [_panel(names, found, smooth) for names in panels(found)]
    return pages.rendered("curves", runs=runs, panels=drawn, frame=frame)


def _panel(names: tuple[str, ...], found: "list[Series]", smooth: int | None) -> dict[str, Any]:
    """Return what the template draws for one pair of axes."""
    from mconv.train.logs.series import CURVES, ends, thin
    from mconv.train.logs.series import smooth as smoothed

    every = [one.curves.get(name, []) for one in found for name in names]
    x, y = _axes(every)
    lines, dots = [], []
    for number, one in enumerate(found):
        colour = COLOURS[number % len(COLOURS)]
        for name in names:
            curve = one.curves.get(name, [])
            if name == "validation_loss" or len(curve) == 1:
                dots += [
                    (colour, x.at(float(a)), y.at(b), f"{one.name}, {CURVES[name]} at {a:,}: {b:.4g}") for a, b in curve
                ]
            elif (over := width(name, curve, smooth)) > 1:
                lines.append((colour, "faint", _points(ends(curve, most=2 * MOST), x, y)))
                lines.append((colour, "bold", _points(thin(smoothed(curve, over=over), most=MOST), x, y)))
            elif curve:
                lines.append((colour, "bold", _points(thin(curve, most=MOST), x, y)))
    title = CURVES[names[0]] if len(names) == 1 else "loss; dots are of validation" if any(every[1::2]) else "loss"
    return {"title": title, "lines": lines, "dots": dots, "x": x.ticks, "y": y.ticks}


def _axes(curves: "list[Curve]") -> tuple[Axis, Axis]:
    """Return axes that enclose all points, with a little space above and below."""
    xs, ys = [float(x) for curve in curves for x, _ in curve], [y for curve in curves for _, y in curve]
    low, high = min(ys), max(ys)
    room = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    bottom = 0.0 if 0 <= low < 0.2 * high else low - room
    return (
        Axis(low=min(xs), high=max(max(xs), min(xs) + 1), start=LEFT, end=RIGHT, whole=True),
        Axis(low=bottom, high=high + room, start=BOTTOM, end=TOP),
    )


def _points(curve: "Curve", x: Axis, y: Axis) -> str:
    return " ".join(f"{x.at(float(a))},{y.at(b)}" for a, b in curve)


def _round_step(least: float) -> float:
    """Return the next of 1, 2, 5 times a power of ten."""
    scale = 10.0 ** math.floor(math.log10(least))
    return next(scale * n for n in (1, 2, 5, 10) if scale * n >= least * (1 - 1e-9))


def _text(value: float, step: float) -> str:
    """Return a tick's value with as many digits as its step needs."""
    if value == 0:
        return "0"
    if abs(value) < 1e-2 or abs(value) >= 1e7:
        digits = max(0, math.floor(math.log10(abs(value)) + 1e-9) - math.floor(math.log10(step) + 1e-9))
        return f"{value:.{digits}e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
